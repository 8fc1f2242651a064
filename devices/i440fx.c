// 82441FX host bridge (Intel 290549-001), function 00:00.0: the programmable attribute map (PAM) that makes
// the firmware area ROM or RAM. The DRAM and cache registers are storage: firmware sizes memory by fw_cfg or
// CMOS.
#include "devices/pci_private.h"

#include <stdlib.h>
#include <string.h>

#define PMCCFG      0x50u // 3.2.14 ff.: storage
#define PAM0        0x59u // 3.2.17
#define PAM6        0x5fu
#define DRB0        0x60u // 3.2.18: row boundaries, storage
#define SMRAMC      0x72u // 3.2.20: no system management mode here; D_LCK is honoured
#define SMRAM_D_LCK 0x10u
#define SMRAM_RESET 0x02u // C_BASE_SEG is hardwired to 010b

#define PAM_RE 1u // read from RAM
#define PAM_WE 2u // write to RAM

struct i440fx {
    struct pci_device *pci;
    struct mem_map *mem;
};

static void apply_nibble(struct i440fx *h, uint64_t base, uint64_t size, unsigned attributes)
{
    mem_set_pam(h->mem, base, size, attributes & PAM_RE, attributes & PAM_WE);
}

// Table 3 of 3.2.17: PAM0[7:4] is F0000-FFFFF; PAM1..6 are 16 KiB pieces from C0000 up, low nibble first.
static void apply_pam(struct i440fx *h)
{
    const uint8_t *pam = pci_config(h->pci) + PAM0;

    apply_nibble(h, 0xf0000, 0x10000, pam[0] >> 4);
    for (unsigned n = 1; n < 7; n++) {
        uint64_t base = 0xc0000 + (n - 1) * 0x8000ull;
        apply_nibble(h, base, 0x4000, pam[n]);
        apply_nibble(h, base + 0x4000, 0x4000, pam[n] >> 4);
    }
}

static void config_written(void *opaque, unsigned offset, unsigned size)
{
    struct i440fx *h = opaque;

    if (offset <= PAM6 && offset + size > PAM0)
        apply_pam(h);
    if (offset <= SMRAMC && offset + size > SMRAMC && (pci_config(h->pci)[SMRAMC] & SMRAM_D_LCK))
        pci_config_writable(h->pci, SMRAMC, 0x00, 1); // until reset
}

static void i440fx_reset(void *opaque)
{
    struct i440fx *h = opaque;
    uint8_t *config = pci_config(h->pci);

    memset(config + PMCCFG, 0, DRB0 + 8 - PMCCFG);
    config[SMRAMC] = SMRAM_RESET;
    pci_config_writable(h->pci, SMRAMC, 0x78, 1);
    config[PCI_COMMAND] = 0x06; // memory and master are hardwired (3.2.3)
    apply_pam(h);
}

// Its state is its configuration space, which the bus saves.
static void i440fx_state(void *opaque, struct stream *s)
{
    (void)opaque;
    stream_section(s, "i440fx", 1);
}

static void i440fx_destroy(void *opaque)
{
    free(opaque);
}

const struct device_ops i440fx_device = {"i440fx", i440fx_reset, i440fx_state, i440fx_destroy};

struct i440fx *i440fx_create(struct pci_bus *b, struct mem_map *mem)
{
    static const struct pci_device_info info = {
        .vendor = 0x8086,
        .device = 0x1237,
        .subsystem_vendor = 0x1af4,
        .subsystem = 0x1100,
        .revision = 2,
        .subclass = 0x00,
        .class_code = 0x06,
        .name = "i440fx",
    };
    struct i440fx *h = calloc(1, sizeof *h);

    if (!h)
        return NULL;
    h->mem = mem;
    h->pci = pci_add(b, 0, &info, NULL, h);
    if (!h->pci) {
        free(h);
        return NULL;
    }
    pci_config_writable(h->pci, PCI_COMMAND, 0x0140, 2);
    for (unsigned offset = PMCCFG; offset < PAM0; offset++)
        pci_config_writable(h->pci, offset, 0xff, 1);
    pci_config_writable(h->pci, PAM0, 0x30, 1);
    for (unsigned offset = PAM0 + 1; offset <= PAM6; offset++)
        pci_config_writable(h->pci, offset, 0x33, 1);
    for (unsigned offset = DRB0; offset < DRB0 + 8; offset++)
        pci_config_writable(h->pci, offset, 0xff, 1);
    pci_on_config_write(h->pci, config_written);
    i440fx_reset(h);
    return h;
}
