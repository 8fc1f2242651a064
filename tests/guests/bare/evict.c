// More code than the translation cache holds: random functions that call and jump to each other within pages
// and across them, directly and through a table, are written, run, and written anew, until the cache has gone
// round more than twice. Every result is compared with what an interpreter of the functions' recipes makes of
// it. Some functions are never rewritten: they lead from the oldest code to the newest and back. The timer
// interrupts all the while.
#include "bare.h"

#define PAGES    1664u
#define PER_PAGE 32u  // functions
#define SIZE     128u // bytes of a function
#define COUNT    (PAGES * PER_PAGE)
#define KEPT     (64u * PER_PAGE) // the first functions are kept
#define STEPS    9u
#define ROUNDS   3u
#define SLOTS    64u

enum op { ADD, XOR, ROL, SKIP /* the next step if a bit is clear */, STORE, LOAD, OPS };
enum tail { RETURN, JUMP, CALL, CALL_TABLE, JUMP_TABLE, TAILS };

struct recipe {
    struct {
        uint32_t op : 4, number : 28;
    } step[STEPS];
    uint32_t tail, next;
};

static uint8_t code[COUNT][SIZE] __attribute__((aligned(4096)));
static struct recipe recipes[COUNT];
static uintptr_t table[COUNT];
static uint32_t slots[SLOTS], model_slots[SLOTS];
static uint8_t draft[SIZE + 16];
static uint32_t random = 12345;

static void byte(uint8_t **p, unsigned value)
{
    *(*p)++ = (uint8_t)value;
}

static void bytes(uint8_t **p, const char *s, unsigned n)
{
    while (n--)
        byte(p, (uint8_t)*s++);
}

static void word(uint8_t **p, uint32_t value)
{
    __builtin_memcpy(*p, &value, 4);
    *p += 4;
}

// As it is to be in code[from], where the draft is copied to.
static void relative(uint8_t **p, unsigned op, unsigned from, unsigned to)
{
    byte(p, op);
    word(p, (uint32_t)(code[to] - (code[from] + (*p + 4 - draft))));
}

// EAX is the value, RSI the slots, RDI the table.
static void write_step(uint8_t **p, unsigned op, uint32_t n)
{
    switch (op) {
    case ADD:
        byte(p, 0x05); // add eax, n
        word(p, n);
        break;
    case XOR:
        byte(p, 0x35);
        word(p, n);
        break;
    case ROL:
        bytes(p, "\xc1\xc0", 2); // rol eax, n
        byte(p, n & 31);
        break;
    case STORE:
        bytes(p, "\x89\x46", 2); // mov [rsi + n], eax
        byte(p, n % 31 * 4);
        break;
    case LOAD:
        bytes(p, "\x03\x46", 2); // add eax, [rsi + n]
        byte(p, n % 31 * 4);
        break;
    default: break;
    }
}

static void write_function(unsigned f)
{
    const struct recipe *r = &recipes[f];
    uint8_t *p = draft;
    for (unsigned i = 0; i < STEPS; i++) {
        if (r->step[i].op != SKIP) {
            write_step(&p, r->step[i].op, r->step[i].number);
            continue;
        }
        byte(&p, 0xa9); // test eax, 1 << n
        word(&p, 1u << (r->step[i].number & 31));
        byte(&p, 0x74); // jz over the next
        uint8_t *over = p++;
        if (++i < STEPS)
            write_step(&p, r->step[i].op, r->step[i].number);
        *over = (uint8_t)(p - (over + 1));
    }
    switch (r->tail) {
    case JUMP: relative(&p, 0xe9, f, r->next); break;
    case CALL:
        relative(&p, 0xe8, f, r->next);
        bytes(&p, "\xff\xc0\xc3", 3); // inc eax; ret
        break;
    case CALL_TABLE:
        bytes(&p, "\xff\x97", 2); // call [rdi + next * sizeof *table]
        word(&p, r->next * (uint32_t)sizeof table[0]);
        bytes(&p, "\xff\xc8\xc3", 3); // dec eax; ret
        break;
    case JUMP_TABLE:
        bytes(&p, "\xff\xa7", 2);
        word(&p, r->next * (uint32_t)sizeof table[0]);
        break;
    default: byte(&p, 0xc3); break;
    }
    if (p > draft + SIZE)
        end("a function is too long");
    void *to = code[f]; // in large steps: each store to a page of code is looked at
    const void *from = draft;
    unsigned long n = SIZE / sizeof n;
    if (sizeof n == 8)
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    else
        __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void invent(unsigned f)
{
    struct recipe *r = &recipes[f];
    for (unsigned i = 0; i < STEPS; i++) {
        r->step[i].op = mix(&random) % OPS;
        r->step[i].number = mix(&random) & 0xfffffff;
        if (i && r->step[i].op == SKIP && r->step[i - 1].op == SKIP)
            r->step[i].op = ADD;
    }
    // On to a function a little or far ahead, so that every chain has an end.
    uint32_t ahead = f < KEPT ? KEPT + mix(&random) % (COUNT - KEPT)
                              : f + 1 + (mix(&random) & 1 ? mix(&random) % 8 : mix(&random) % 40000);
    r->next = ahead;
    r->tail = ahead < COUNT ? 1 + mix(&random) % (TAILS - 1) : RETURN;
}

static uint32_t model_step(unsigned op, uint32_t n, uint32_t x)
{
    switch (op) {
    case ADD: return x + n;
    case XOR: return x ^ n;
    case ROL: return n & 31 ? x << (n & 31) | x >> (32 - (n & 31)) : x;
    case STORE: model_slots[n % 31] = x; return x;
    case LOAD: return x + model_slots[n % 31];
    default: return x;
    }
}

static uint32_t model(unsigned f, uint32_t x)
{
    uint32_t after = 0;
    for (;;) {
        const struct recipe *r = &recipes[f];
        for (unsigned i = 0; i < STEPS; i++) {
            if (r->step[i].op != SKIP)
                x = model_step(r->step[i].op, r->step[i].number, x);
            else if (i++, !(x >> (r->step[i - 1].number & 31) & 1))
                continue;
            else if (i < STEPS)
                x = model_step(r->step[i].op, r->step[i].number, x);
        }
        if (r->tail == RETURN)
            return x + after;
        after += r->tail == CALL ? 1 : r->tail == CALL_TABLE ? -1u : 0;
        f = r->next;
    }
}

static uint32_t run(unsigned f, uint32_t x)
{
    __asm__ volatile("call *%1" : "+a"(x) : "r"(table[f]), "S"(slots), "D"(table) : "memory", "cc");
    return x;
}

static void compare(unsigned f, uint32_t *x)
{
    uint32_t want = model(f, *x);
    *x = run(f, *x);
    if (*x != want)
        end("a function's result");
}

void payload(void)
{
    uint32_t x = 1;
    for (unsigned f = 0; f < COUNT; f++)
        table[f] = (uintptr_t)code[f];
    timer_start(200, 1000);
    irq_on();
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned f = round ? KEPT : 0; f < COUNT; f++) {
            invent(f);
            write_function(f);
        }
        for (unsigned f = KEPT; f < COUNT; f++) {
            compare(f, &x);
            if (f % 64 == 0) // through code that is as old as the round
                compare(f / 64 % KEPT, &x);
            if (f % 128 == 0) // a function is rewritten between two runs
                for (unsigned i = 0; i < 2; i++) {
                    unsigned g = KEPT + mix(&random) % (COUNT - KEPT);
                    compare(g, &x);
                    invent(g);
                    write_function(g);
                    compare(g, &x);
                }
        }
        for (unsigned i = 0; i < SLOTS; i++)
            if (slots[i] != model_slots[i])
                end("a slot");
        put_number(round);
        put("\n");
    }
    end(0);
}
