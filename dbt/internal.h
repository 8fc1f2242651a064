// What the parts of the translator proper share. Runs with the guest's FPU state saved (Zydis uses vector registers).
#pragma once
#include "dbt/dbt.h"

#define MAX_LENGTH 15 // bytes of an instruction

enum insn_class { CLASS_PLAIN, CLASS_CONTROL, CLASS_SENSITIVE, CLASS_STRING, CLASS_NOTHING, CLASS_INLINE, CLASS_GATHER };

// By the order of Zydis' names: AL CL DL BL AH CH DH BH SPL … R15B, AX … R15W, EAX … R15D, RAX … R15. Its own functions for
// this are calls into a library, several an instruction.
static inline bool gpr_is(ZydisRegister r) { return r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_R15; }
static inline bool gpr_is_64(ZydisRegister r) { return r >= ZYDIS_REGISTER_RAX && r <= ZYDIS_REGISTER_R15; }
static inline unsigned gpr_number(ZydisRegister r) // of the whole register
{
    if (r >= ZYDIS_REGISTER_AX)
        return (unsigned)(r - ZYDIS_REGISTER_AX) & 15;
    unsigned n = (unsigned)(r - ZYDIS_REGISTER_AL);
    return n < 8 ? n & 3 : n - 4;
}
_Static_assert(ZYDIS_REGISTER_R15 - ZYDIS_REGISTER_AX == 47 && ZYDIS_REGISTER_AX - ZYDIS_REGISTER_AL == 20, "the order of names");

struct ea { // a memory operand: registers by guest number
    int base, index; // -1: none
    unsigned scale, addr_size, sreg;
    int64_t disp;
    bool relative; // `disp` is RIP-relative's sum
};

// What Zydis says of an instruction, as far as anybody here asks, under the names it has there. All but the numbers, and in few
// bytes: most of what is translated was met before, and is read from memory in this form.
struct operand {
    uint8_t type, encoding, visibility, actions;
    uint16_t size; // bits
    union {
        struct {
            uint16_t value;
        } reg;
        struct {
            uint8_t type, scale;
            uint16_t segment, base, index;
            bool has_displacement;
        } mem;
        struct {
            uint16_t segment;
            uint32_t offset;
        } ptr;
    };
};

struct fields { // architectural register numbers of the encoding's fields
    uint8_t reg, rm, vreg, opreg;
    bool rex;
};

enum stack_use { STACK_NONE, STACK_PUSH, STACK_POP, STACK_CALL, STACK_RET };
enum change { CHANGE_ANY, CHANGE_ONE, CHANGE_MINUS_ONE, CHANGE_IMM, CHANGE_MINUS_IMM, CHANGE_DISP }; // added to a whole register

struct brief {
    // What decode() reads, in the first cache line of struct decoded
    uint8_t length, address_width; // bytes, bits
    struct {                       // the operand that is accessed in memory
        bool exists, read, write, has_displacement, rip_relative;
        int8_t base, index; // guest registers, -1: none
        uint8_t scale, sreg;
        uint16_t size; // bytes
    } mem;
    struct {
        struct {
            uint8_t size, offset; // bits, bytes
        } disp;
        struct {
            uint8_t size, offset;
            bool is_signed;
        } imm; // the first
        struct {
            uint8_t mod, reg, rm, offset;
        } modrm;
        bool rex_w;
        uint8_t sib_offset, vex_offset, evex_offset;
        uint8_t prefix_count; // legacy ones: the first bytes
        uint16_t mandatory;   // bit i: prefix i selects the opcode
    } raw;
    uint16_t mnemonic;
    uint8_t opcode, opcode_map, encoding, machine_mode, operand_width; // bits
    uint8_t operand_count, operand_count_visible;
    bool has_operandsize; // prefix in effect
    struct {
        uint8_t category, isa_ext, branch_type;
        uint16_t isa_set;
    } meta;
    struct {
        uint16_t tested, written, undefined; // of FL_ARITH
    } flags;
    struct {
        uint16_t vector_length; // bits
        uint16_t mask_reg;
        uint8_t mask_mode;
    } avx;
    struct fields fields;
    uint8_t lead_size;
    uint32_t lead;        // legacy encodings: the prefixes that the host's instruction begins with
    uint16_t gpr_written; // bit n: a register operand that may be written is guest register n, or a part of it
    uint8_t stack;        // enum stack_use
    uint8_t change;       // enum change, to the register that gpr_written names
    bool explicit_mem;    // an operand in memory beside the stack
    bool groupable;       // it is off one register
};

struct decoding {
    struct brief z;
    struct operand op[ZYDIS_MAX_OPERAND_COUNT];
};

struct ginsn { // one decoded guest instruction
    const struct brief *z; // what is kept for its head, or `own`
    const struct operand *op;
    struct decoding *own;
    int64_t disp;        // displacement and first immediate
    uint64_t imm;
    uint8_t bytes[24]; // the last 8 are for reading beyond the end
    uint64_t rip;
    uint32_t live;       // arithmetic flags live before it
    uint32_t live_after;
    uint8_t cls;         // enum insn_class
    uint8_t sens;        // enum insn_op of CLASS_SENSITIVE
    bool has_ea, ea_read, ea_write; // its memory operand
    unsigned ea_size;    // bytes
    struct ea ea;
};

enum cold_kind {
    COLD_SLOW,
    COLD_CONSTANT, // a miss of a constant address, `la`
    COLD_SEGMENT,
    COLD_EXIT,
    COLD_NUMBER, // the constant `la`, for an operand whose displacement is at `from`
    COLD_CHECK,  // whether an indirect branch, instruction `info`, leads out of the code; flags are parked
    COLD_LOOKUP, // there is no block for the target of that
    COLD_CALL,   // the same of a call in policy `user`, which goes on with an index that leads to the stub that stops
    COLD_LIMIT,  // the run of instructions that begins with number `info` would go beyond the count's limit
};
struct cold {
    uint8_t kind;
    uint8_t write;
    uint8_t flags; // COLD_LIMIT: enum flag_place
    bool relative; // COLD_CONSTANT: the address moves with the code
    uint32_t info;
    uint8_t *from; // rel32 of the jump to it
    uint8_t *back; // where it returns to (writable mapping)
    union {
        struct exit *exit; // COLD_EXIT; `from` is null where a slot leads to it
        uint64_t la;
    };
};

#define EA_IN_T0 (-2) // as base: the offset is in T0 already
// Where the guest's arithmetic flags are while a block is emitted (dbt/flags.c).
enum flag_place { FLAGS_DEAD, FLAGS_HOST, FLAGS_PARKED };


struct window { // the bytes of the page(s) being translated
    uint64_t la;   // of byte 0
    uint64_t gpa;
    const uint8_t *p;
    unsigned len;
    uint8_t joined[32]; // an instruction crossing into the next page
};

#define AHEAD 24 // instructions
#define FORM_BITS 13
#define FORM_OPERANDS 4

struct head { // an instruction's bytes before displacement and immediate; bits 48.. of `high`: their number; 56..: 1 + the
    uint64_t low, high; // decoder's index
};

struct ahead { // an instruction that will be decoded
    const uint8_t *p;
    uint8_t bytes[16];
    struct head head; // 0: none
};

struct decoded { // what was decoded for a head (decode.c)
    _Alignas(64) struct head head;
    uint32_t key;   // of cls and sens
    uint32_t block; // that uses it: the number of the last one
    uint8_t cls, sens;
    struct brief z;
    struct operand op[FORM_OPERANDS];
};

struct plain { // a memory operand as it is: host registers, -1: none
    int base, index;
    unsigned scale;
    int32_t disp;
    uint8_t segment; // prefix byte, 0: none
    bool addr32;     // 67
};

struct merge_group { // accesses off one register that one check covers (merge.c)
    int base;
    unsigned version, count;
    int64_t min, max; // offsets from the register's value when its version began
    bool write, checked;
};

struct merge_access {
    int8_t group;   // -1: none
    int64_t offset; // of the base register at this instruction, since its version began
};

struct translation {
    struct asm_buf a;
    struct dbt *d;
    struct block *b;
    uint32_t key;
    unsigned code_size; // 2, 4, 8
    ZydisDecoder decoder[3];
    bool has_set[ZYDIS_ISA_SET_MAX_VALUE + 1]; // features.c: instruction sets the guest's model has
    uint16_t rule_of[ZYDIS_MNEMONIC_MAX_VALUE + 1]; // classify.c: 1 + index of the mnemonic's rule, 0: none
    struct ginsn insn[MAX_INSNS];
    struct decoding decoding[MAX_INSNS + 1]; // the last is peek's
    uint32_t block_number;
    unsigned count;
    unsigned side_exits;
    struct exit exit[MAX_EXITS];
    struct range range[MAX_RANGES];
    struct span indirect[MAX_SPANS];
    struct ginsn peek;
    struct cold cold[MAX_INSNS * 6 + MAX_EXITS + 4];
    unsigned cold_count;
    struct map_entry map[MAX_INSNS];
    struct reloc reloc[MAX_RELOCS];
    uint64_t rip_mask;  // of the next RIP in this mode
    uint32_t operand;   // SLOW_ALIGNED, SLOW_MASKED, SLOW_X87: of the next operand
    bool sha_unaligned; // SHA instructions of this host take unaligned operands
    enum flag_place flags;
    struct merge_group group[MERGE_GROUPS];
    unsigned group_count;
    struct merge_access access[MAX_INSNS][2];
    uint8_t access_count[MAX_INSNS];
    uint8_t rest[MAX_INSNS]; // counted: instructions of its run from each one on, else 0
    unsigned current, nth; // instruction being emitted, and how many of its accesses have been
    int32_t rsp_pending;   // what guest RSP is more than its host register, within a run of PUSH and POP
    int t1_group;          // the group whose delta T1 holds, -1: none
    bool is_plain;         // the operand at hand is `plain`
    struct plain plain;
    bool based;            // the operand at hand is [T1 + based_on + based_disp] instead of [T1 + T0]
    unsigned based_on;
    int32_t based_disp;
    const struct window *window;
    bool committed;     // KEY_BOUNCE: the instruction writes; leave through the commit stub
    bool ended;         // the last instruction left the block
    struct ahead ahead[AHEAD]; // what will be decoded next: from number ahead_at on
    unsigned ahead_at, ahead_count;
    struct decoded form[1 << FORM_BITS]; // by hash of head
};

// Offset of a field of the vCPU's state, as an absolute address
#define STATE(t, field) ((uint64_t)&(t)->d->v->s.field)
#define DBT(t, field)   ((uint64_t)&(t)->d->field)

static inline unsigned host_reg(unsigned guest) { return host_of_guest[guest & 15]; }
static inline uint64_t code_linear(const struct translation *t, uint64_t rip) // linear address of code
{
    uint64_t la = rip + t->b->cs_base;
    return t->code_size == 8 ? la : (uint32_t)la;
}
static inline bool user(const struct translation *t) { return t->key & KEY_USER; }
static inline bool bounce(const struct translation *t) { return t->key & KEY_BOUNCE; }

// ---- operand.c
// Makes the operand reachable: afterwards it is at host [T1 + T0]. Flags in the host survive, parked ones are left alone.
void mem_begin(struct translation *t, const struct ea *ea, unsigned size, bool write, bool read_too);
void mem_combine(struct translation *t); // to [T1]; T0 is free
void plain_prefixes(struct asm_buf *a, const struct plain *p);
// disp32: no shorter displacement, which EVEX scales.
void plain_modrm(struct asm_buf *a, unsigned reg, const struct plain *p, bool disp32);
void mem_offset(struct translation *t, const struct ea *ea); // T0 = offset, before segmentation
struct cold *cold_add(struct translation *t, unsigned kind, uint32_t info, bool write, uint8_t *from);
void mem_cold(struct translation *t);    // emits the out-of-line parts
bool mem_operand(const struct ginsn *g, struct ea *ea, unsigned *size, bool *read, bool *write);
void load_guest(struct translation *t, unsigned host, unsigned guest);  // whole register
void store_guest(struct translation *t, unsigned guest, unsigned host);
unsigned guest_in(struct translation *t, unsigned guest, unsigned scratch); // host register holding it, loaded if homed

// ---- count.c: counted instructions, by runs
void count_plan(struct translation *t);  // fills `rest`
void count_run(struct translation *t);   // before the instruction at hand, if a run begins with it
void count_cold(struct translation *t, const struct cold *c);

// ---- merge.c
void merge_prepare(const struct ginsn *g, struct brief *z); // what merge_plan() wants to know of it
void merge_plan(struct translation *t, bool enabled);
struct merge_group *merge_next(struct translation *t, const struct ea *ea, unsigned size, int64_t *offset);
bool merge_all_checked(const struct translation *t);

// ---- encode.c
bool may_be_masked(const struct ginsn *g); // only some of the bytes of its memory operand may be accessed
void emit_plain(struct translation *t, struct ginsn *g);
void legacy_lead(struct brief *z, const uint8_t *bytes); // fills `lead`

enum enc_mem { ENC_NONE, ENC_T1T0, ENC_T1, ENC_BASED, ENC_ABS, ENC_PLAIN };
struct enc {
    int reg, rm, vreg, opreg; // host registers for these fields, -1: as encoded
    enum enc_mem mem;
    uint64_t abs;
    bool byte_low; // an 8-bit operand is one of the host's SPL..DIL
    bool flip;     // the opcode's other direction: what was r/m is in `reg`, and the reverse
};
void encode(struct translation *t, const struct ginsn *g, const struct enc *e);
void emit_masked_again(struct translation *t, const struct ginsn *g, const struct enc *e);
static inline struct fields insn_fields(const struct ginsn *g) { return g->z->fields; }

// ---- flags.c
void flags_before(struct translation *t, const struct ginsn *g); // brings them to where the instruction wants them
void flags_after(struct translation *t, const struct ginsn *g);
void flags_park(struct translation *t);   // host -> memory; uses T1
void flags_unpark(struct translation *t); // memory -> host; uses T1
uint32_t flags_read(const struct ginsn *g);
uint32_t flags_killed(const struct ginsn *g);

// ---- control.c
void emit_control(struct translation *t, struct ginsn *g);
bool call_returns(const struct translation *t, const struct ginsn *g); // to this block: its RET can be predicted
uint64_t branch_target(const struct translation *t, const struct ginsn *g); // of a direct near branch
unsigned branch_size(const struct translation *t, const struct ginsn *g); // operand size of a near branch in bytes
void emit_exit_to(struct translation *t, uint64_t rip);   // direct exit, chained
// To the RIP in T0, in the mode of `to`, which is the vCPU's by then. Flags are parked.
void emit_enter(struct translation *t, const struct context *to);
void emit_cold_branch(struct translation *t, const struct cold *c); // COLD_CHECK, COLD_LOOKUP

// ---- stack.c: sizes in bytes
enum push_kind { PUSH_REG, PUSH_IMM, PUSH_RIP /* a number that moves with the code */, PUSH_TMP /* dbt->tmp */ };
void emit_push(struct translation *t, unsigned size, int kind, uint64_t value);
void emit_peek_stack(struct translation *t, unsigned size, unsigned dst); // dst = what a POP would read
void rsp_change(struct translation *t, int32_t n);                      // RSP += n, behind the instruction's access
void load_sized(struct translation *t, unsigned size, unsigned dst);      // dst = zero-extended operand of mem_begin()
void assign_sized(struct translation *t, unsigned size, unsigned guest);  // guest register = T0, as MOV of that size does
void emit_push_insn(struct translation *t, struct ginsn *g);
void emit_pop_insn(struct translation *t, struct ginsn *g);
void emit_leave(struct translation *t, struct ginsn *g);

// ---- user.c: policy `user`
void mem_plain(struct translation *t, const struct ea *ea); // mem_begin() of it
void plain_combine(struct translation *t);                 // mem_combine() of it
void emit_user_string(struct translation *t, struct ginsn *g);

// ---- repeat.c
void emit_string(struct translation *t, struct ginsn *g); // CLASS_STRING: ends the block

// ---- odd.c
void emit_odd(struct translation *t, struct ginsn *g);
void emit_nothing(struct translation *t, struct ginsn *g);

// ---- features.c
void decoders_init(struct translation *t, const struct cpu_model *m);
void features_init(struct translation *t, const struct cpu_model *m);
// Whether blocks there may be copied to other guest addresses; offers one that was made; copies one to the vCPU's RIP, or null.
bool rebase_wants(const struct dbt *d, uint64_t rip, uint32_t key);
void rebase_offer(struct translation *t, struct block *b);
struct block *rebase(struct dbt *d, uint64_t gpa, bool global, uint32_t key);
bool uses_mmx(const struct ginsn *g);
bool feature_offered(const struct translation *t, const struct ginsn *g); // or #UD

// ---- classify.c
void classify_init(struct translation *t);
void classify(struct translation *t, struct ginsn *g);
void fill_insn(const struct translation *t, const struct ginsn *g, struct insn *in);
void emit_site(struct translation *t, struct ginsn *g);   // ends the block in a sensitive or string helper

// ---- inline.c: hot sensitive instructions without a call
bool can_inline(const struct translation *t, const struct ginsn *g);
void emit_inline(struct translation *t, struct ginsn *g, bool last);

void emit_flags_image(struct translation *t); // T0 = RFLAGS, RF and VM read as 0; the arithmetic ones are parked
// To the mode of `key`, whose context is `to`; RIP comes after.
void emit_switch_mode(struct translation *t, uint32_t key, const struct context *to);

// ---- syscall.c: SYSCALL and SYSRET between 64-bit modes
bool can_inline_syscall(const struct translation *t);
bool can_inline_sysret(const struct translation *t, const struct ginsn *g);
void emit_syscall(struct translation *t, struct ginsn *g);
void emit_sysret(struct translation *t, struct ginsn *g);

// ---- decode.c
// The instruction at p, of which len bytes are there, decoded and classified for the mode of t. False if it goes on behind
// them.
bool decode(struct translation *t, struct ginsn *g, const uint8_t *p, unsigned len, uint64_t rip);
// The same with Zydis alone, into g->own. What Zydis says of bytes that are no instruction is returned.
ZyanStatus decode_alone(const ZydisDecoder *decoder, struct ginsn *g, unsigned len);
void decode_ahead(struct translation *t, const uint8_t *p, unsigned len); // the instructions at p will be decoded next
void cannot_decode(struct translation *t, struct ginsn *g, unsigned op); // makes it raise the exception of OP_UD, OP_GP0

// ---- peek.c
struct peeked { // what liveness wants to know of an instruction
    unsigned length;
    uint32_t read, killed; // arithmetic flags
    bool ends;             // the block
};
// False: the decoder must say. Never looks beyond p[room - 1].
bool peek_quickly(const struct translation *t, const uint8_t *p, unsigned room, struct peeked *k);

// ---- translate.c
bool is_conditional(const struct ginsn *g); // a near branch
bool is_call(const struct ginsn *g);        // a near one
// Flags that the code at `rip` may read before writing them, looking only into the block's own page.
uint32_t peek_live(struct translation *t, uint64_t rip);
