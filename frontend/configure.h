// From the options of a run to a machine's configuration.
#pragma once
#include "devices/machine.h"
#include "frontend/options.h"

// Fills what follows from the options alone: no hooks, no serial ports, nothing that is traced or measured. The
// configuration points into the options and into disks[MAX_DISKS].
void configure(struct machine_config *c, struct machine_disk *disks, const struct run_options *o);
