// The machine for ACPI: 82441FX host bridge, PIIX3 ISA bridge and the chips behind it.
DefinitionBlock ("", "DSDT", 2, "GNOMON", "GNOMONPC", 0x00000001)
{
    // Set at run time (bios/acpi.c looks for the names). Plain 32-bit integers: SeaBIOS stops reading at a 64-bit one and,
    // as any system older than ACPI 6, at External().
    Name (\P32B, 0x80000001) // 32-bit window: first and last byte
    Name (\P32E, 0x80000002)
    Name (\P64B, 0x80000003) // 64-bit window in MiB: first and number; 0: none
    Name (\P64N, 0x80000004)

    Name (\_S5, Package () { Zero, Zero, Zero, Zero }) // PIIX4 SUS_TYP 0: soft off
    Name (\PICF, Zero)
    Method (\_PIC, 1, NotSerialized) { PICF = Arg0 }

    Scope (\_SB)
    {
        Device (CPU0)
        {
            Name (_HID, "ACPI0007")
            Name (_UID, Zero)
        }

        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A03"))
            Name (_UID, Zero)
            Name (_BBN, Zero)

            Name (CR32, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0x0000, 0x00FF, 0, 0x0100)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0, 0x000A0000, 0x000BFFFF, 0, 0x00020000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0xC0000000, 0xFEBFFFFF, 0, 0x3EC00000, , , PW32)
            })
            Name (CR64, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0, 0x0000008000000000, 0x000000FFFFFFFFFF, 0, 0x0000008000000000, , , PW64)
            })
            Method (_CRS, 0, Serialized)
            {
                CreateDWordField (CR32, ^PW32._MIN, MN32)
                CreateDWordField (CR32, ^PW32._MAX, MX32)
                CreateDWordField (CR32, ^PW32._LEN, LN32)
                MN32 = \P32B
                MX32 = \P32E
                LN32 = \P32E - \P32B + 1
                If (\P64N == Zero)
                {
                    Return (CR32)
                }
                CreateQWordField (CR64, ^PW64._MIN, MN64)
                CreateQWordField (CR64, ^PW64._MAX, MX64)
                CreateQWordField (CR64, ^PW64._LEN, LN64)
                MN64 = \P64B << 20
                LN64 = \P64N << 20
                MX64 = MN64 + LN64 - 1
                Return (ConcatenateResTemplate (CR32, CR64))
            }

            // Pin p of slot s is PIRQ (s - 1 + p) & 3; the power management function (slot 1, pin A) has the SCI.
            Name (PRTB, Package (128) {})
            Method (_PRT, 0, Serialized)
            {
                Local0 = Zero // slot << 2 | pin
                While (Local0 < 128)
                {
                    Local1 = Local0 >> 2
                    Local2 = (Local1 + Local0 + 3) & 3
                    If (Local2 == 0)
                    {
                        Local3 = Package (4) { Zero, Zero, \_SB.LNKA, Zero }
                    }
                    If (Local2 == 1)
                    {
                        Local3 = Package (4) { Zero, Zero, \_SB.LNKB, Zero }
                    }
                    If (Local2 == 2)
                    {
                        Local3 = Package (4) { Zero, Zero, \_SB.LNKC, Zero }
                    }
                    If (Local2 == 3)
                    {
                        Local3 = Package (4) { Zero, Zero, \_SB.LNKD, Zero }
                    }
                    If (Local0 == 4)
                    {
                        Local3 = Package (4) { Zero, Zero, \_SB.LNKS, Zero }
                    }
                    Local3[0] = (Local1 << 16) | 0xFFFF
                    Local3[1] = Local0 & 3
                    PRTB[Local0] = Local3
                    Local0++
                }
                Return (PRTB)
            }

            Device (ISA)
            {
                Name (_ADR, 0x00010000)
                OperationRegion (PIRQ, PCI_Config, 0x60, 0x04) // PIIX3 2.2.12
                Field (PIRQ, ByteAcc, NoLock, Preserve)
                {
                    PRQA, 8,
                    PRQB, 8,
                    PRQC, 8,
                    PRQD, 8
                }

                Device (KBD)
                {
                    Name (_HID, EisaId ("PNP0303"))
                    Name (_STA, 0x0F)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0060, 0x0060, 1, 1)
                        IO (Decode16, 0x0064, 0x0064, 1, 1)
                        IRQNoFlags () { 1 }
                    })
                }
                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0070, 0x0070, 1, 8)
                        IRQNoFlags () { 8 }
                    })
                }
                Device (PIC)
                {
                    Name (_HID, EisaId ("PNP0000"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0020, 0x0020, 1, 2)
                        IO (Decode16, 0x00A0, 0x00A0, 1, 2)
                        IO (Decode16, 0x04D0, 0x04D0, 1, 2)
                        IRQNoFlags () { 2 }
                    })
                }
                Device (TIMR)
                {
                    Name (_HID, EisaId ("PNP0100"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0040, 0x0040, 1, 4)
                        IRQNoFlags () { 0 }
                    })
                }
                Device (SPKR)
                {
                    Name (_HID, EisaId ("PNP0800"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0061, 0x0061, 1, 1)
                    })
                }
                Device (FPU)
                {
                    Name (_HID, EisaId ("PNP0C04"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x00F0, 0x00F0, 1, 2)
                        IRQNoFlags () { 13 }
                    })
                }
                Device (COM1)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 1)
                    Name (_STA, 0x0F)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x03F8, 0x03F8, 1, 8)
                        IRQNoFlags () { 4 }
                    })
                }
                Device (COM2)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 2)
                    Name (_STA, 0x0F)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x02F8, 0x02F8, 1, 8)
                        IRQNoFlags () { 3 }
                    })
                }
                Device (PVP)
                {
                    Name (_HID, "QEMU0001") // pvpanic
                    Name (_STA, 0x0F)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0505, 0x0505, 1, 1)
                    })
                }
                Device (BRDR) // PM registers, APM and fast A20/reset ports
                {
                    Name (_HID, EisaId ("PNP0C02"))
                    Name (_UID, 1)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0092, 0x0092, 1, 1)
                        IO (Decode16, 0x00B2, 0x00B2, 1, 2)
                        IO (Decode16, 0x0600, 0x0600, 1, 0x40)
                    })
                }
            }
        }

        Device (HPET)
        {
            Name (_HID, EisaId ("PNP0103"))
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadOnly, 0xFED00000, 0x00000400)
            })
        }

        Device (FWCF)
        {
            Name (_HID, "QEMU0002") // fw_cfg
            Name (_STA, 0x0B)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0510, 0x0510, 1, 0x0C)
            })
        }

        // PIRQ routing registers: bit 7 disables, bits 3:0 are the ISA interrupt.
        Method (IQST, 1, NotSerialized)
        {
            If (Arg0 & 0x80)
            {
                Return (0x09)
            }
            Return (0x0B)
        }
        Name (PRR0, ResourceTemplate ()
        {
            Interrupt (ResourceConsumer, Level, ActiveHigh, Shared, , , PRRI) { 0 }
        })
        Method (IQCR, 1, Serialized)
        {
            CreateDWordField (PRR0, ^PRRI._INT, PRRN)
            PRRN = Zero
            If (Arg0 < 0x80)
            {
                PRRN = Arg0
            }
            Return (PRR0)
        }
        Device (LNKA)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 1)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized) { Return (IQST (\_SB.PCI0.ISA.PRQA)) }
            Method (_DIS, 0, NotSerialized) { \_SB.PCI0.ISA.PRQA |= 0x80 }
            Method (_CRS, 0, NotSerialized) { Return (IQCR (\_SB.PCI0.ISA.PRQA)) }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 0x05, INTN)
                \_SB.PCI0.ISA.PRQA = INTN
            }
        }
        Device (LNKB)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 2)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized) { Return (IQST (\_SB.PCI0.ISA.PRQB)) }
            Method (_DIS, 0, NotSerialized) { \_SB.PCI0.ISA.PRQB |= 0x80 }
            Method (_CRS, 0, NotSerialized) { Return (IQCR (\_SB.PCI0.ISA.PRQB)) }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 0x05, INTN)
                \_SB.PCI0.ISA.PRQB = INTN
            }
        }
        Device (LNKC)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 3)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized) { Return (IQST (\_SB.PCI0.ISA.PRQC)) }
            Method (_DIS, 0, NotSerialized) { \_SB.PCI0.ISA.PRQC |= 0x80 }
            Method (_CRS, 0, NotSerialized) { Return (IQCR (\_SB.PCI0.ISA.PRQC)) }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 0x05, INTN)
                \_SB.PCI0.ISA.PRQC = INTN
            }
        }
        Device (LNKD)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 4)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 5, 10, 11 }
            })
            Method (_STA, 0, NotSerialized) { Return (IQST (\_SB.PCI0.ISA.PRQD)) }
            Method (_DIS, 0, NotSerialized) { \_SB.PCI0.ISA.PRQD |= 0x80 }
            Method (_CRS, 0, NotSerialized) { Return (IQCR (\_SB.PCI0.ISA.PRQD)) }
            Method (_SRS, 1, NotSerialized)
            {
                CreateDWordField (Arg0, 0x05, INTN)
                \_SB.PCI0.ISA.PRQD = INTN
            }
        }
        Device (LNKS) // the SCI: hardwired
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 5)
            Name (_PRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 9 }
            })
            Name (_CRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 9 }
            })
            Method (_STA, 0, NotSerialized) { Return (0x0B) }
            Method (_DIS, 0, NotSerialized) {}
            Method (_SRS, 1, NotSerialized) {}
        }
    }
}
