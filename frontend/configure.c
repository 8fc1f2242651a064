#include "frontend/configure.h"

void configure(struct machine_config *c, struct machine_disk *disks, const struct run_options *o)
{
    for (unsigned i = 0; i < o->disk_count; i++)
        disks[i] = (struct machine_disk){o->disks[i].path, o->disks[i].readonly, o->disks[i].snapshot};
    *c = (struct machine_config){
        .memory_bytes = o->memory_bytes,
        .cpu = o->cpu,
        .kernel = o->kernel,
        .initrds = (const char *const *)o->initrds,
        .initrd_count = o->initrd_count,
        .append = o->append,
        .bios = o->bios,
        .disks = disks,
        .disk_count = o->disk_count,
        .on_crash = (enum machine_on_crash)o->on_crash,
        .reset_exits = o->on_reboot == ON_REBOOT_EXIT,
        .cell = o->cell,
        .sandbox = o->sandbox,
        .direct = (enum machine_direct)o->direct,
        .policy = (enum machine_policy)o->policy,
        .deterministic = o->deterministic,
        .epoch_s = o->epoch_s,
    };
}
