// The queue of timers of one machine: a list sorted by deadline. A machine has about a dozen timers, most of
// them re-armed near the head, so a list beats any cleverer structure and allocates nothing.
#include "devices/device.h"

#define NEVER UINT64_MAX

static uint64_t head_deadline(const struct timer_queue *q)
{
    return q->head ? q->head->deadline_ns : NEVER;
}

static void announce(struct timer_queue *q)
{
    uint64_t deadline_ns = head_deadline(q);

    if (q->running || deadline_ns == (q->announced ? q->announced_ns : NEVER))
        return;
    q->announced = deadline_ns != NEVER;
    q->announced_ns = deadline_ns;
    if (q->rearm)
        q->rearm(q->opaque, deadline_ns);
}

static void unlink_timer(struct timer *t)
{
    if (t->deadline_ns == NEVER)
        return;
    for (struct timer **p = &t->queue->head; *p; p = &(*p)->next) {
        if (*p == t) {
            *p = t->next;
            break;
        }
    }
    t->next = NULL;
    t->deadline_ns = NEVER;
}

void timer_init(struct timer *t, struct timer_queue *q, void (*expired)(void *opaque, uint64_t now_ns),
                void *opaque)
{
    t->queue = q;
    t->expired = expired;
    t->opaque = opaque;
    t->deadline_ns = NEVER;
    t->next = NULL;
}

void timer_arm(struct timer *t, uint64_t deadline_ns)
{
    unlink_timer(t);
    if (deadline_ns != NEVER) {
        struct timer **p = &t->queue->head;
        while (*p && (*p)->deadline_ns <= deadline_ns) // equal deadlines expire in the order they were armed
            p = &(*p)->next;
        t->next = *p;
        t->deadline_ns = deadline_ns;
        *p = t;
    }
    announce(t->queue);
}

void timer_cancel(struct timer *t)
{
    timer_arm(t, NEVER);
}

uint64_t timer_now(const struct timer_queue *q)
{
    return q->now(q->opaque);
}

// The clock is read once: a callback that arms for a time already past runs in this call, one that arms for a
// time that passes meanwhile in the next, so that a busy timer can't keep the caller here.
uint64_t timer_run(struct timer_queue *q)
{
    if (q->running) // a callback reached back to its own queue
        return head_deadline(q);

    uint64_t now_ns = timer_now(q);
    q->running = true;
    while (q->head && q->head->deadline_ns <= now_ns) {
        struct timer *t = q->head;
        unlink_timer(t);
        t->expired(t->opaque, now_ns);
    }
    q->running = false;
    announce(q);
    return head_deadline(q);
}
