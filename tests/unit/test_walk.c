// Page walks: every paging mode, permission and fault of SDM 3A 4.3-4.7.
#include "mmu_fixture.h"

#define PF_P    1u
#define PF_WR   2u
#define PF_US   4u
#define PF_RSVD 8u
#define PF_ID   16u

static struct world world;

static int setup(void **state)
{
    (void)state;
    world_create(&world);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    world_destroy(&world);
    return 0;
}

// Error code of the walk, or -1 if it succeeds.
static int walk_error(uint64_t la, unsigned acc)
{
    struct walk w;
    uint32_t error = 0xdead;
    return mmu_walk(world.v, la, acc, &w, &error) ? -1 : (int)error;
}

static void map(const struct mode *mode, uint64_t entry[4])
{
    world_paging(&world, mode->paging);
    world_map(&world, mode, entry);
}

// ---- permissions

enum who { USER, SUPERVISOR, IMPLICIT };
#define ANY 2

// SDM 3A 4.6.1, rows in order, the first that fits decides. `user` and `w`: U/S and R/W set in every entry;
// `xd`: in some entry, with EFER.NXE.
static const struct rule {
    enum who who;
    unsigned access;
    uint8_t user, w, xd, wp, smep, smap, ac;
    bool allowed;
} rules[] = {
    {USER, ACC_READ, 1, ANY, ANY, ANY, ANY, ANY, ANY, true},
    {USER, ACC_READ, 0, ANY, ANY, ANY, ANY, ANY, ANY, false},
    {USER, ACC_WRITE, 1, 1, ANY, ANY, ANY, ANY, ANY, true},
    {USER, ACC_WRITE, ANY, ANY, ANY, ANY, ANY, ANY, ANY, false},
    {USER, ACC_EXEC, 1, ANY, 0, ANY, ANY, ANY, ANY, true},
    {USER, ACC_EXEC, ANY, ANY, ANY, ANY, ANY, ANY, ANY, false},
    {SUPERVISOR, ACC_READ, 0, ANY, ANY, ANY, ANY, ANY, ANY, true},
    {SUPERVISOR, ACC_READ, 1, ANY, ANY, ANY, ANY, 0, ANY, true},
    {SUPERVISOR, ACC_READ, 1, ANY, ANY, ANY, ANY, 1, 1, true},
    {SUPERVISOR, ACC_READ, 1, ANY, ANY, ANY, ANY, 1, 0, false},
    {SUPERVISOR, ACC_WRITE, 0, ANY, ANY, 0, ANY, ANY, ANY, true},
    {SUPERVISOR, ACC_WRITE, 0, 1, ANY, 1, ANY, ANY, ANY, true},
    {SUPERVISOR, ACC_WRITE, 0, 0, ANY, 1, ANY, ANY, ANY, false},
    {SUPERVISOR, ACC_WRITE, 1, ANY, ANY, 0, ANY, 0, ANY, true},
    {SUPERVISOR, ACC_WRITE, 1, ANY, ANY, 0, ANY, 1, 1, true},
    {SUPERVISOR, ACC_WRITE, 1, ANY, ANY, 0, ANY, 1, 0, false},
    {SUPERVISOR, ACC_WRITE, 1, 1, ANY, 1, ANY, 0, ANY, true},
    {SUPERVISOR, ACC_WRITE, 1, 1, ANY, 1, ANY, 1, 1, true},
    {SUPERVISOR, ACC_WRITE, 1, ANY, ANY, 1, ANY, ANY, ANY, false},
    {SUPERVISOR, ACC_EXEC, 0, ANY, 0, ANY, ANY, ANY, ANY, true},
    {SUPERVISOR, ACC_EXEC, 0, ANY, 1, ANY, ANY, ANY, ANY, false},
    {SUPERVISOR, ACC_EXEC, 1, ANY, 0, ANY, 0, ANY, ANY, true},
    {SUPERVISOR, ACC_EXEC, 1, ANY, ANY, ANY, ANY, ANY, ANY, false},
    {IMPLICIT, ACC_READ, 0, ANY, ANY, ANY, ANY, ANY, ANY, true},
    {IMPLICIT, ACC_READ, 1, ANY, ANY, ANY, ANY, 0, ANY, true},
    {IMPLICIT, ACC_READ, 1, ANY, ANY, ANY, ANY, 1, ANY, false},
    {IMPLICIT, ACC_WRITE, 0, ANY, ANY, 0, ANY, ANY, ANY, true},
    {IMPLICIT, ACC_WRITE, 0, 1, ANY, 1, ANY, ANY, ANY, true},
    {IMPLICIT, ACC_WRITE, 0, 0, ANY, 1, ANY, ANY, ANY, false},
    {IMPLICIT, ACC_WRITE, 1, ANY, ANY, ANY, ANY, 1, ANY, false},
    {IMPLICIT, ACC_WRITE, 1, ANY, ANY, 0, ANY, 0, ANY, true},
    {IMPLICIT, ACC_WRITE, 1, 1, ANY, 1, ANY, 0, ANY, true},
    {IMPLICIT, ACC_WRITE, 1, 0, ANY, 1, ANY, 0, ANY, false},
};

static bool fits(uint8_t want, bool is)
{
    return want == ANY || want == is;
}

static bool rule_allows(enum who who, unsigned access, const bool c[7])
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        const struct rule *r = &rules[i];
        if (r->who == who && r->access == access && fits(r->user, c[0]) && fits(r->w, c[1]) &&
            fits(r->xd, c[2]) && fits(r->wp, c[3]) && fits(r->smep, c[4]) && fits(r->smap, c[5]) &&
            fits(r->ac, c[6]))
            return r->allowed;
    }
    fail_msg("the table has no row");
    return false;
}

// All of one mode, with what is denied being denied at `level`.
static void permissions_at(const struct mode *mode, unsigned level)
{
    static const unsigned accesses[] = {ACC_READ, ACC_WRITE, ACC_EXEC};
    uint64_t entry[4];
    unsigned size = entry_size(mode->paging);
    map(mode, entry);
    uint64_t all = peek(&world, entry[level], size);
    for (unsigned bits = 0; bits < 128; bits++) {
        bool c[7];
        for (unsigned i = 0; i < 7; i++)
            c[i] = bits >> i & 1;
        if (c[2] && mode->paging == PAGING_32)
            continue;
        struct cpu_state *s = &world.v->s;
        s->cr0 = CR0_PE | CR0_PG | (c[3] ? CR0_WP : 0);
        s->cr4 = (s->cr4 & ~(uint64_t)(CR4_SMEP | CR4_SMAP)) | (c[4] ? CR4_SMEP : 0) | (c[5] ? CR4_SMAP : 0);
        s->rflags = FL_ONE | (c[6] ? FL_AC : 0);
        poke(&world, entry[level], (all & ~(U | W)) | (c[0] ? U : 0) | (c[1] ? W : 0) | (c[2] ? XD : 0),
             size);
        for (enum who who = USER; who <= IMPLICIT; who++) {
            for (unsigned a = 0; a < 3; a++) {
                if (who == IMPLICIT && accesses[a] == ACC_EXEC)
                    continue;
                int expected = -1;
                if (!rule_allows(who, accesses[a], c)) {
                    bool id = accesses[a] == ACC_EXEC && (mode->paging != PAGING_32 || c[4]);
                    expected = (int)(PF_P | (accesses[a] == ACC_WRITE ? PF_WR : 0) |
                                     (who == USER ? PF_US : 0) | (id ? PF_ID : 0));
                }
                unsigned acc = accesses[a] | (who == USER ? ACC_USER : who == IMPLICIT ? ACC_SYSTEM : 0);
                int error = walk_error(mode->la, acc);
                if (error != expected)
                    fail_msg("%s, level %u, who %d, access %u, U W XD WP SMEP SMAP AC = %u%u%u%u%u%u%u: %d, "
                             "not %d",
                             mode->name, level, who, accesses[a], c[0], c[1], c[2], c[3], c[4], c[5], c[6],
                             error, expected);
            }
        }
    }
}

static void every_permission_holds_as_the_manual_says_at_every_level(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++)
        for (unsigned level = 0; level < modes[i].levels; level++)
            permissions_at(&modes[i], level);
}

static void system_access_at_cpl3_is_a_supervisor_access(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(&modes[4], entry);
    poke(&world, entry[3], peek(&world, entry[3], 8) & ~U, 8);
    world.v->s.cpl = 3;
    assert_int_equal(walk_error(modes[4].la, ACC_USER), PF_P | PF_US);
    assert_int_equal(walk_error(modes[4].la, ACC_SYSTEM), -1);
    assert_int_equal(walk_error(modes[4].la, ACC_USER | ACC_SYSTEM), -1);
}

// ---- addresses

static void every_mode_translates_to_frame_plus_offset(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        uint64_t entry[4];
        struct walk w;
        uint32_t error;
        map(&modes[i], entry);
        assert_true(mmu_walk(world.v, modes[i].la, ACC_READ, &w, &error));
        assert_int_equal(w.gpa, modes[i].frame | (modes[i].la & (modes[i].size - 1)));
        assert_int_equal(w.page_size, modes[i].size);
        assert_true(w.user);
        assert_false(w.global);
        assert_false(w.writable); // not dirty yet
        assert_true(mmu_walk(world.v, modes[i].la, ACC_WRITE, &w, &error));
        assert_true(w.writable);
        assert_true(mmu_walk(world.v, modes[i].la, ACC_READ, &w, &error));
        assert_true(w.writable);
    }
}

static void paging_off_is_identity_on_32_bits(void **state)
{
    (void)state;
    struct walk w;
    uint32_t error;
    assert_true(mmu_walk(world.v, 0x1234567ull, ACC_WRITE | ACC_USER, &w, &error));
    assert_int_equal(w.gpa, 0x1234567);
    assert_int_equal(w.page_size, 4096);
    assert_true(w.writable);
    assert_false(w.global);
    assert_true(mmu_walk(world.v, 0x1ffff0000ull, ACC_READ, &w, &error));
    assert_int_equal(w.gpa, 0xffff0000);
}

static void the_pat_bit_of_a_large_page_is_no_address_bit(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        uint64_t entry[4];
        struct walk w;
        uint32_t error;
        if (modes[i].size == 4096)
            continue;
        map(&modes[i], entry);
        unsigned leaf = modes[i].levels - 1, size = entry_size(modes[i].paging);
        poke(&world, entry[leaf], peek(&world, entry[leaf], size) | PAT_LARGE, size);
        assert_true(mmu_walk(world.v, modes[i].la & ~0xffffull, ACC_READ, &w, &error));
        assert_int_equal(w.gpa, modes[i].frame | (modes[i].la & (modes[i].size - 1) & ~0xffffull));
    }
}

static void a20_masks_the_page_and_the_tables(void **state)
{
    (void)state;
    uint64_t entry[4];
    struct walk w;
    uint32_t error;
    mem_set_a20(&world.mem, false);
    assert_true(mmu_walk(world.v, 0x10ffef, ACC_READ, &w, &error));
    assert_int_equal(w.gpa, 0xffef);
    struct mode mode = modes[0];
    mode.frame = 0x00523000;
    mem_set_a20(&world.mem, true);
    map(&mode, entry);
    mem_set_a20(&world.mem, false);
    world.v->s.cr3 |= 1 << 20;
    assert_true(mmu_walk(world.v, mode.la, ACC_READ, &w, &error));
    assert_int_equal(w.gpa, 0x00423123);
}

static void linear_addresses_outside_long_mode_have_32_bits(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t entry[4];
        map(&modes[i], entry);
        assert_int_equal(walk_error(modes[i].la | 0x700000000, ACC_READ), -1);
    }
}

static void pse_off_makes_ps_of_a_32_bit_pde_ignored(void **state)
{
    (void)state;
    uint64_t entry[4];
    struct walk w;
    uint32_t error;
    map(&modes[0], entry);
    poke(&world, entry[0], peek(&world, entry[0], 4) | PS, 4);
    world.v->s.cr4 &= ~(uint64_t)CR4_PSE;
    assert_true(mmu_walk(world.v, modes[0].la, ACC_READ, &w, &error));
    assert_int_equal(w.gpa, 0x00423123);
    assert_int_equal(w.page_size, 4096);
}

static void pse36_gives_bits_39_32_as_far_as_maxphyaddr_goes(void **state)
{
    (void)state;
    static const struct {
        unsigned phys_bits;
        uint32_t reserved;
    } table[] = {{32, 0x003fe000}, {36, 0x003e0000}, {39, 0x00300000},
                 {40, 0x00200000}, {46, 0x00200000}, {52, 0x00200000}};
    uint64_t entry[4];
    map(&modes[1], entry);
    uint64_t pde = peek(&world, entry[0], 4);
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        fixture_model.phys_bits = table[i].phys_bits;
        for (unsigned bit = 13; bit < 22; bit++) {
            struct walk w;
            uint32_t error;
            poke(&world, entry[0], pde | 1u << bit, 4);
            bool ok = mmu_walk(world.v, modes[1].la, ACC_READ, &w, &error);
            assert_int_equal(ok, !(table[i].reserved >> bit & 1));
            if (ok)
                assert_int_equal(w.gpa, 1ull << (bit + 19) | 0x00800000 | (modes[1].la & 0x3fffff));
            else
                assert_int_equal(error, PF_P | PF_RSVD);
        }
    }
}

static void without_pse36_bits_21_13_are_reserved(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(&modes[1], entry);
    fixture_model.features[CPU_PSE36 / 64] &= ~(1ull << CPU_PSE36 % 64);
    assert_int_equal(walk_error(modes[1].la, ACC_READ), -1);
    poke(&world, entry[0], peek(&world, entry[0], 4) | 1 << 13, 4);
    assert_int_equal(walk_error(modes[1].la, ACC_READ), PF_P | PF_RSVD);
}

static void without_1_gib_pages_ps_of_a_pdpte_is_reserved(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(&modes[6], entry);
    fixture_model.features[CPU_PDPE1GB / 64] &= ~(1ull << CPU_PDPE1GB % 64);
    assert_int_equal(walk_error(modes[6].la, ACC_READ), PF_P | PF_RSVD);
    map(&modes[5], entry);
    fixture_model.features[CPU_PDPE1GB / 64] &= ~(1ull << CPU_PDPE1GB % 64);
    assert_int_equal(walk_error(modes[5].la, ACC_READ), -1);
}

static void amd_reserves_bit_8_of_upper_4_level_entries(void **state)
{
    (void)state;
    for (unsigned i = 2; i < MODES; i++) {
        for (unsigned level = 0; level < modes[i].levels; level++) {
            uint64_t entry[4];
            map(&modes[i], entry);
            fixture_model.amd = true;
            poke(&world, entry[level], peek(&world, entry[level], 8) | G, 8);
            bool upper = level < modes[i].levels - 1 && level_shift(&modes[i], level) >= 30;
            assert_int_equal(walk_error(modes[i].la, ACC_READ), upper ? (int)(PF_P | PF_RSVD) : -1);
        }
    }
}

static void pae_takes_its_directory_pointers_from_the_registers(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(&modes[2], entry);
    world.v->s.cr3 = 0x00f00000; // not looked at
    assert_int_equal(walk_error(modes[2].la, ACC_READ), -1);
    world.v->s.pdpte[3] &= ~P;
    assert_int_equal(walk_error(modes[2].la, ACC_WRITE | ACC_USER), PF_WR | PF_US);
}

static void global_needs_cr4_pge(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        uint64_t entry[4];
        struct walk w;
        uint32_t error;
        unsigned leaf = modes[i].levels - 1, size = entry_size(modes[i].paging);
        map(&modes[i], entry);
        poke(&world, entry[leaf], peek(&world, entry[leaf], size) | G, size);
        assert_true(mmu_walk(world.v, modes[i].la, ACC_READ, &w, &error));
        assert_false(w.global);
        world.v->s.cr4 |= CR4_PGE;
        assert_true(mmu_walk(world.v, modes[i].la, ACC_READ, &w, &error));
        assert_true(w.global);
    }
}

// ---- faults

static void not_present_clears_p_whatever_else_the_entries_say(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        const struct mode *mode = &modes[i];
        unsigned size = entry_size(mode->paging);
        for (unsigned level = 0; level < mode->levels; level++) {
            uint64_t entry[4];
            map(mode, entry);
            if (level) // a violation above, which counts only once the walk is through
                poke(&world, entry[0], peek(&world, entry[0], size) & ~(U | W), size);
            poke(&world, entry[level], (size == 4 ? 0xffffffff : ~0ull) & ~P, size);
            assert_int_equal(walk_error(mode->la, ACC_READ), 0);
            assert_int_equal(walk_error(mode->la, ACC_WRITE), PF_WR);
            assert_int_equal(walk_error(mode->la, ACC_USER), PF_US);
            assert_int_equal(walk_error(mode->la, ACC_WRITE | ACC_USER), PF_WR | PF_US);
            assert_int_equal(walk_error(mode->la, ACC_EXEC), mode->paging == PAGING_32 ? 0 : PF_ID);
        }
    }
}

static void fetch_bit_needs_smep_or_nxe(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        uint64_t entry[4];
        map(&modes[i], entry);
        poke(&world, entry[0], 0, entry_size(modes[i].paging));
        uint64_t cr4 = world.v->s.cr4, efer = world.v->s.efer;
        world.v->s.efer = efer & ~(uint64_t)EFER_NXE;
        assert_int_equal(walk_error(modes[i].la, ACC_EXEC | ACC_USER), PF_US);
        world.v->s.cr4 = cr4 | CR4_SMEP;
        assert_int_equal(walk_error(modes[i].la, ACC_EXEC | ACC_USER), PF_US | PF_ID);
        world.v->s.cr4 = cr4;
        world.v->s.efer = efer | EFER_NXE; // without PAE it means nothing
        assert_int_equal(walk_error(modes[i].la, ACC_EXEC | ACC_USER),
                         PF_US | (modes[i].paging == PAGING_32 ? 0 : PF_ID));
    }
}

// Reserved bits among those that are not address bits, MAXPHYADDR 40, NXE on: SDM 3A tables 4-4 to 4-6, 4-8
// to 4-11, 4-14 to 4-19.
static const uint64_t reserved_bits[MODES][4] = {
    {0, 0},
    {0x00200000},
    {0x7fffff0000000000, 0x7fffff0000000000},
    {0x7fffff00001fe000},
    {0x000fff0000000080, 0x000fff0000000000, 0x000fff0000000000, 0x000fff0000000000},
    {0x000fff0000000080, 0x000fff0000000000, 0x000fff00001fe000},
    {0x000fff0000000080, 0x000fff003fffe000},
};

static void reserved_bits_fault_with_rsvd_at_every_level(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        const struct mode *mode = &modes[i];
        unsigned size = entry_size(mode->paging);
        for (unsigned level = 0; level < mode->levels; level++) {
            uint64_t entry[4];
            map(mode, entry);
            uint64_t valid = peek(&world, entry[level], size);
            bool leaf = level == mode->levels - 1;
            for (unsigned bit = 1; bit < size * 8; bit++) {
                // Address bits of an entry that references a table lead elsewhere; PS below the root
                // changes what it is.
                if ((!leaf && bit >= 12 && bit < 40) || (bit == 7 && !leaf && level_shift(mode, level) != 39))
                    continue;
                poke(&world, entry[level], valid | 1ull << bit, size);
                bool reserved = reserved_bits[i][level] >> bit & 1;
                int error = walk_error(mode->la, ACC_WRITE);
                if (error != (reserved ? (int)(PF_P | PF_WR | PF_RSVD) : -1))
                    fail_msg("%s, level %u, bit %u: error %d", mode->name, level, bit, error);
                // Not present comes before reserved.
                poke(&world, entry[level], (valid | 1ull << bit) & ~P, size);
                assert_int_equal(walk_error(mode->la, ACC_WRITE), PF_WR);
            }
        }
    }
}

static void xd_is_reserved_without_nxe(void **state)
{
    (void)state;
    for (unsigned i = 2; i < MODES; i++) {
        for (unsigned level = 0; level < modes[i].levels; level++) {
            uint64_t entry[4];
            map(&modes[i], entry);
            poke(&world, entry[level], peek(&world, entry[level], 8) | XD, 8);
            assert_int_equal(walk_error(modes[i].la, ACC_READ), -1);
            world.v->s.efer &= ~(uint64_t)EFER_NXE;
            assert_int_equal(walk_error(modes[i].la, ACC_READ), PF_P | PF_RSVD);
            assert_int_equal(walk_error(modes[i].la, ACC_EXEC | ACC_USER), PF_P | PF_RSVD | PF_US);
        }
    }
}

static void reserved_comes_before_protection(void **state)
{
    (void)state;
    for (unsigned i = 2; i < MODES; i++) {
        uint64_t entry[4];
        unsigned leaf = modes[i].levels - 1;
        map(&modes[i], entry);
        poke(&world, entry[0], peek(&world, entry[0], 8) & ~(U | W), 8);
        poke(&world, entry[leaf], peek(&world, entry[leaf], 8) | 1ull << 45, 8);
        if (!leaf)
            poke(&world, entry[0], peek(&world, entry[0], 8) & ~(U | W), 8);
        assert_int_equal(walk_error(modes[i].la, ACC_WRITE | ACC_USER), PF_P | PF_WR | PF_US | PF_RSVD);
    }
}

// ---- accessed and dirty

static uint64_t bits_at(const struct mode *mode, uint64_t entry)
{
    return peek(&world, entry, entry_size(mode->paging)) & (A | D);
}

static void reads_set_a_everywhere_and_writes_d_in_the_leaf(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        uint64_t entry[4];
        struct walk w;
        uint32_t error;
        unsigned leaf = modes[i].levels - 1;
        map(&modes[i], entry);
        assert_true(mmu_probe(world.v, modes[i].la, ACC_WRITE, &w, &error));
        for (unsigned level = 0; level <= leaf; level++)
            assert_int_equal(bits_at(&modes[i], entry[level]), 0);
        assert_int_equal(walk_error(modes[i].la, ACC_READ), -1);
        for (unsigned level = 0; level <= leaf; level++)
            assert_int_equal(bits_at(&modes[i], entry[level]), A);
        assert_int_equal(walk_error(modes[i].la, ACC_WRITE), -1);
        for (unsigned level = 0; level <= leaf; level++)
            assert_int_equal(bits_at(&modes[i], entry[level]), level == leaf ? A | D : A);
        map(&modes[i], entry);
        assert_int_equal(walk_error(modes[i].la, ACC_EXEC), -1);
        assert_int_equal(bits_at(&modes[i], entry[leaf]), A);
    }
}

static void faulting_walks_set_a_above_the_entry_that_faults_only(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MODES; i++) {
        unsigned leaf = modes[i].levels - 1, size = entry_size(modes[i].paging);
        for (unsigned bad = 0; bad <= leaf; bad++) {
            uint64_t entry[4];
            map(&modes[i], entry);
            poke(&world, entry[bad], peek(&world, entry[bad], size) & ~P, size);
            assert_int_equal(walk_error(modes[i].la, ACC_WRITE), PF_WR);
            for (unsigned level = 0; level <= leaf; level++)
                assert_int_equal(bits_at(&modes[i], entry[level]), level < bad ? A : 0);
        }
        uint64_t entry[4];
        map(&modes[i], entry);
        poke(&world, entry[0], peek(&world, entry[0], size) & ~W, size);
        assert_int_equal(walk_error(modes[i].la, ACC_WRITE), PF_P | PF_WR);
        for (unsigned level = 0; level <= leaf; level++)
            assert_int_equal(bits_at(&modes[i], entry[level]), level < leaf ? A : 0);
    }
}

// ---- tables in odd places

static void tables_in_nothing_read_as_all_ones(void **state)
{
    (void)state;
    struct walk w;
    uint32_t error;
    world_paging(&world, PAGING_LONG);
    world.v->s.cr3 = 0xd0000000;
    assert_int_equal(walk_error(0x1000, ACC_READ), PF_P | PF_RSVD);
    world_paging(&world, PAGING_PAE);
    world.v->s.pdpte[0] = 0xd0000000 | P;
    assert_int_equal(walk_error(0x1000, ACC_READ), PF_P | PF_RSVD);
    world_paging(&world, PAGING_32);
    world.v->s.cr3 = 0xd0000000;
    assert_int_equal(walk_error(0x1000, ACC_READ), PF_P | PF_RSVD); // bit 21
    world.v->s.cr4 = 0;
    assert_true(mmu_walk(world.v, 0x1234, ACC_WRITE | ACC_USER, &w, &error));
    assert_int_equal(w.gpa, 0xfffff234);
}

static uint64_t no_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)offset, (void)size;
    fail_msg("the walker read a device");
    return 0;
}

static void tables_in_mmio_read_as_all_ones_without_touching_the_device(void **state)
{
    (void)state;
    static const struct mmio_ops ops = {.read = no_read};
    assert_true(mem_add_mmio(&world.mem, 0xd0000000, 0x1000, &ops, NULL, "device") >= 0);
    world_paging(&world, PAGING_LONG);
    world.v->s.cr3 = 0xd0000000;
    assert_int_equal(walk_error(0x1000, ACC_READ), PF_P | PF_RSVD);
}

static void tables_in_rom_work_and_stay_as_they_are(void **state)
{
    (void)state;
    static uint32_t rom[2048];
    rom[0] = 0xfff01000 | (uint32_t)(P | W | U);
    rom[1024 + 5] = 0x00300000 | (uint32_t)(P | W | U);
    assert_true(mem_add_rom(&world.mem, 0xfff00000, rom, sizeof rom, "rom") >= 0);
    world_paging(&world, PAGING_32);
    world.v->s.cr3 = 0xfff00000;
    struct walk w;
    uint32_t error;
    assert_true(mmu_walk(world.v, 0x5678, ACC_WRITE, &w, &error));
    assert_int_equal(w.gpa, 0x00300678);
    assert_true(w.writable);
    assert_int_equal(peek(&world, 0xfff01014, 4), rom[1024 + 5]);
}

static void the_last_entry_of_ram_is_read_and_set(void **state)
{
    (void)state;
    world_paging(&world, PAGING_32);
    world.v->s.cr3 = (16 << 20) - 4096;
    poke(&world, (16 << 20) - 4, 0x00800000 | P | W | PS, 4);
    assert_int_equal(walk_error(0xffc12345, ACC_WRITE), -1);
    assert_int_equal(peek(&world, (16 << 20) - 4, 4), 0x00800000 | P | W | PS | A | D);
}

static uint64_t traced_gpa;
static unsigned traced_len, traced_count;

static void on_written(void *opaque, uint64_t gpa, unsigned len)
{
    (void)opaque;
    traced_gpa = gpa;
    traced_len = len;
    traced_count++;
}

static void setting_a_bit_in_a_traced_table_is_a_write(void **state)
{
    (void)state;
    uint64_t entry[4];
    mem_trace_register(&world.mem, (struct mem_trace_client){.written = on_written, .bit = TRACE_TABLE});
    map(&modes[4], entry);
    mem_trace_set(&world.mem, entry[3], TRACE_TABLE);
    traced_count = 0;
    assert_int_equal(walk_error(modes[4].la, ACC_READ), -1);
    assert_int_equal(traced_count, 1);
    assert_int_equal(traced_gpa, entry[3]);
    assert_int_equal(traced_len, 8);
    assert_int_equal(walk_error(modes[4].la, ACC_READ), -1);
    assert_int_equal(traced_count, 1); // A was set: nothing written
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(every_permission_holds_as_the_manual_says_at_every_level),
        T(system_access_at_cpl3_is_a_supervisor_access),
        T(every_mode_translates_to_frame_plus_offset),
        T(paging_off_is_identity_on_32_bits),
        T(the_pat_bit_of_a_large_page_is_no_address_bit),
        T(a20_masks_the_page_and_the_tables),
        T(linear_addresses_outside_long_mode_have_32_bits),
        T(pse_off_makes_ps_of_a_32_bit_pde_ignored),
        T(pse36_gives_bits_39_32_as_far_as_maxphyaddr_goes),
        T(without_pse36_bits_21_13_are_reserved),
        T(without_1_gib_pages_ps_of_a_pdpte_is_reserved),
        T(amd_reserves_bit_8_of_upper_4_level_entries),
        T(pae_takes_its_directory_pointers_from_the_registers),
        T(global_needs_cr4_pge),
        T(not_present_clears_p_whatever_else_the_entries_say),
        T(fetch_bit_needs_smep_or_nxe),
        T(reserved_bits_fault_with_rsvd_at_every_level),
        T(xd_is_reserved_without_nxe),
        T(reserved_comes_before_protection),
        T(reads_set_a_everywhere_and_writes_d_in_the_leaf),
        T(faulting_walks_set_a_above_the_entry_that_faults_only),
        T(tables_in_nothing_read_as_all_ones),
        T(tables_in_mmio_read_as_all_ones_without_touching_the_device),
        T(tables_in_rom_work_and_stay_as_they_are),
        T(the_last_entry_of_ram_is_read_and_set),
        T(setting_a_bit_in_a_traced_table_is_a_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
