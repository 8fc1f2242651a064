// The local APIC (SDM 3A chapter 11): xAPIC at FEE00000h and x2APIC MSRs, timer with TSC-deadline mode.
// It belongs to the vCPU and runs beside it; reads and writes cost a call.
#pragma once
#include "cpu/cpu.h"

struct timer_queue;
struct stream;
struct apic_message;

struct lapic;
// request: sets REQ_* bits of the vCPU (and kicks it if called from elsewhere).
struct lapic *lapic_create(struct vcpu *v, struct timer_queue *clock, void (*request)(void *opaque, uint32_t bits),
                           void (*eoi)(void *opaque, uint8_t vector), void *opaque);
void lapic_destroy(struct lapic *l);
void lapic_reset(struct lapic *l);
void lapic_state(struct lapic *l, struct stream *s);
uint64_t lapic_mmio_read(struct lapic *l, uint64_t offset, unsigned size); // offset in the 4 KiB page
void lapic_mmio_write(struct lapic *l, uint64_t offset, unsigned size, uint64_t value);
// x2APIC and IA32_APIC_BASE, IA32_TSC_DEADLINE MSRs; false: #GP(0).
bool lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value);
// A message from the I/O APIC, MSI or another local APIC, if it addresses this one. Returns whether it was accepted.
bool lapic_deliver(struct lapic *l, const struct apic_message *m);
void lapic_set_lint0(struct lapic *l, int level); // the 8259's INTR
// Highest pending vector above the processor priority, or -1. lapic_ack() moves it from IRR to ISR.
int lapic_pending(const struct lapic *l);
int lapic_ack(struct lapic *l);
bool lapic_accepts_pic(const struct lapic *l); // LINT0 is ExtINT and unmasked, or the APIC is disabled
uint8_t lapic_tpr(const struct lapic *l);      // CR8 = TPR >> 4
void lapic_set_tpr(struct lapic *l, uint8_t tpr);
