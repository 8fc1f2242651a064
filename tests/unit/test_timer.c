#include "device_fixture.h"

struct world {
    struct timer_queue q;
    uint64_t now_ns;
    struct timer t[4];
    int order[16], runs;
    uint64_t at[16];
    uint64_t told[16];
    int tellings;
    uint64_t rearm_by; // a timer that runs arms itself again so much later
    struct timer *rearmed;
    int rearms;
};

static uint64_t now(void *opaque)
{
    return ((struct world *)opaque)->now_ns;
}

static void told(void *opaque, uint64_t deadline_ns)
{
    struct world *w = opaque;
    w->told[w->tellings++] = deadline_ns;
}

#define EXPIRED(n)                                                                                           \
    static void expired##n(void *opaque, uint64_t now_ns)                                                    \
    {                                                                                                        \
        struct world *w = opaque;                                                                            \
        w->at[w->runs] = now_ns;                                                                             \
        w->order[w->runs++] = n;                                                                             \
        if (w->rearmed == &w->t[n] && w->rearms-- > 0)                                                       \
            timer_arm(&w->t[n], now_ns + w->rearm_by);                                                       \
    }
EXPIRED(0)
EXPIRED(1)
EXPIRED(2)
EXPIRED(3)

static int setup(void **state)
{
    static void (*const expired[4])(void *, uint64_t) = {expired0, expired1, expired2, expired3};
    struct world *w = calloc(1, sizeof *w);
    w->q = (struct timer_queue){.now = now, .rearm = told, .opaque = w};
    for (int i = 0; i < 4; i++)
        timer_init(&w->t[i], &w->q, expired[i], w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static void timers_run_in_order_of_deadline_and_equal_ones_in_order_of_arming(void **state)
{
    struct world *w = *state;
    timer_arm(&w->t[0], 30);
    timer_arm(&w->t[1], 10);
    timer_arm(&w->t[2], 30);
    timer_arm(&w->t[3], 20);
    w->now_ns = 30;
    assert_int_equal(timer_run(&w->q), UINT64_MAX);
    assert_int_equal(w->runs, 4);
    assert_int_equal(w->order[0], 1);
    assert_int_equal(w->order[1], 3);
    assert_int_equal(w->order[2], 0);
    assert_int_equal(w->order[3], 2);
    assert_int_equal(w->at[0], 30);
    assert_int_equal(w->t[0].deadline_ns, UINT64_MAX);
}

static void timer_in_the_future_does_not_run_and_is_the_next_deadline(void **state)
{
    struct world *w = *state;
    timer_arm(&w->t[0], 100);
    timer_arm(&w->t[1], 101);
    w->now_ns = 99;
    assert_int_equal(timer_run(&w->q), 100);
    assert_int_equal(w->runs, 0);
    w->now_ns = 100;
    assert_int_equal(timer_run(&w->q), 101);
    assert_int_equal(w->runs, 1);
}

static void rearming_moves_a_timer_and_cancel_removes_it(void **state)
{
    struct world *w = *state;
    timer_arm(&w->t[0], 100);
    timer_arm(&w->t[0], 50);
    assert_null(w->q.head->next);
    timer_arm(&w->t[1], 60);
    timer_arm(&w->t[0], 70);
    assert_ptr_equal(w->q.head, &w->t[1]);
    timer_cancel(&w->t[1]);
    timer_cancel(&w->t[1]);
    assert_ptr_equal(w->q.head, &w->t[0]);
    timer_arm(&w->t[0], UINT64_MAX);
    assert_null(w->q.head);
}

static void owner_is_told_only_when_the_earliest_deadline_changes(void **state)
{
    struct world *w = *state;
    timer_cancel(&w->t[0]);
    assert_int_equal(w->tellings, 0);
    timer_arm(&w->t[0], 0); // also a deadline
    assert_int_equal(w->tellings, 1);
    timer_arm(&w->t[0], 100);
    timer_arm(&w->t[1], 200);
    timer_arm(&w->t[2], 100);
    timer_arm(&w->t[0], 100);
    timer_cancel(&w->t[0]); // 100 is still the earliest
    assert_int_equal(w->tellings, 2);
    assert_int_equal(w->told[1], 100);
    timer_cancel(&w->t[2]);
    assert_int_equal(w->told[2], 200);
    timer_cancel(&w->t[1]);
    assert_int_equal(w->told[3], UINT64_MAX);
    assert_int_equal(w->tellings, 4);
}

static void run_tells_once_at_its_end(void **state)
{
    struct world *w = *state;
    timer_arm(&w->t[0], 10);
    timer_arm(&w->t[1], 20);
    w->tellings = 0;
    w->now_ns = 25;
    w->rearmed = &w->t[0];
    w->rearms = 1;
    w->rearm_by = 5;
    assert_int_equal(timer_run(&w->q), 30);
    assert_int_equal(w->tellings, 1);
    assert_int_equal(w->told[0], 30);
    assert_int_equal(timer_run(&w->q), 30);
    assert_int_equal(w->tellings, 1);
}

static void callback_that_arms_for_now_runs_again_in_the_same_call(void **state)
{
    struct world *w = *state;
    timer_arm(&w->t[0], 10);
    w->now_ns = 10;
    w->rearmed = &w->t[0];
    w->rearms = 3;
    assert_int_equal(timer_run(&w->q), UINT64_MAX);
    assert_int_equal(w->runs, 4);
}

static void scale_is_exact_beyond_64_bits_and_saturates(void **state)
{
    (void)state;
    assert_int_equal(time_scale(1ull << 60, 1000000007, 1000000007), 1ull << 60);
    assert_int_equal(time_scale(10, 1, 3), 3);
    assert_int_equal(time_scale_up(10, 1, 3), 4);
    assert_int_equal(time_scale_up(9, 1, 3), 3);
    assert_int_equal(time_scale(UINT64_MAX, 2, 2), UINT64_MAX);
    assert_int_equal(time_scale(UINT64_MAX, 4, 3), UINT64_MAX);
    assert_int_equal(time_scale(86400000000000ull, 1193182, 1000000000), 103090924800ull);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(timers_run_in_order_of_deadline_and_equal_ones_in_order_of_arming,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(timer_in_the_future_does_not_run_and_is_the_next_deadline, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(rearming_moves_a_timer_and_cancel_removes_it, setup, teardown),
        cmocka_unit_test_setup_teardown(owner_is_told_only_when_the_earliest_deadline_changes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(run_tells_once_at_its_end, setup, teardown),
        cmocka_unit_test_setup_teardown(callback_that_arms_for_now_runs_again_in_the_same_call, setup,
                                        teardown),
        cmocka_unit_test(scale_is_exact_beyond_64_bits_and_saturates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
