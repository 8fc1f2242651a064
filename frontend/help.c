#include "frontend/help.h"

#include <string.h>

#include "frontend/options.h"

void help_short(FILE *f)
{
    fputs("gnomon runs x86 PCs in software, without VT-x or SVM.\n"
          "\n"
          "Type this first, in the source tree, for the shell of a Debian kernel:\n"
          "  ./try\n"
          "With a kernel of yours:\n"
          "  gnomon run --kernel bzImage --initrd initramfs.cpio --append console=ttyS0\n"
          "\n"
          "In the machine, Ctrl-A x ends it and Ctrl-A h lists the keys.\n"
          "  gnomon help        what there is help about\n"
          "  gnomon help run    every option\n"
          "  gnomon info        whether machines can run here\n",
          f);
}

static void topic_run(FILE *f)
{
    fputs("gnomon run [MACHINE.ini] [OPTION]...\n\n", f);
    for (size_t i = 0; i < run_option_count; i++) {
        const struct option_info *o = &run_option_table[i];
        char form[80];
        snprintf(form, sizeof form, o->optional ? "--%s[=%s]" : "--%s %s", o->name, o->argument);
        if (strlen(form) > 30)
            fprintf(f, "  %s\n  %-30s %s\n", form, "", o->help);
        else
            fprintf(f, "  %-30s %s\n", form, o->help);
    }
    fputs("\nOptions may stand in a machine file too: gnomon help machine-file\n", f);
}

static void topic_info(FILE *f)
{
    fputs("gnomon info [--json]\n"
          "\n"
          "Says whether machines can run here, and what of the host they use: for each thing whether the host\n"
          "allows it, found out by trying, and what follows. The first line is the sum of it:\n"
          "  yes      gnomon run works, with its sandbox\n"
          "  limited  it needs --sandbox off, or less --memory than the default\n"
          "  no       something that every machine needs is denied\n"
          "With --json it is one line of JSON: for each thing its state, and in NAME_means what follows.\n"
          "Whatever is denied, the exit status is 0.\n",
          f);
}

static void topic_machine_file(FILE *f)
{
    fputs("A machine file holds the options of gnomon run, one a line, without the dashes:\n"
          "\n"
          "  # a machine of mine\n"
          "  [machine]\n"
          "  kernel = vmlinuz\n"
          "  initrd = initramfs.cpio\n"
          "  append = console=ttyS0 panic=-1\n"
          "  memory = 1G\n"
          "\n"
          "Values are taken as they stand, without quotes. Repeatable options take one line a value, others\n"
          "only one line. Lines that begin with # or ; are comments. Paths are relative to the file. What the\n"
          "command line says goes first:\n"
          "  gnomon run machine.ini --memory 2G\n",
          f);
}

static void topic_keys(FILE *f)
{
    fputs("On a terminal, while a serial port is on stdio:\n"
          "  Ctrl-A x       end the machine\n"
          "  Ctrl-A s       print statistics\n"
          "  Ctrl-A Ctrl-A  send Ctrl-A to the guest\n"
          "  Ctrl-A h       list the keys\n"
          "All other keys, Ctrl-C and Ctrl-Z too, are the guest's.\n",
          f);
}

static void topic_exit(FILE *f)
{
    fputs("Exit statuses of gnomon run:\n"
          "   0  the guest powered itself off\n"
          "   2  usage: a wrong option, machine file or value\n"
          "   4  the host refused something, or gnomon failed\n"
          "   6  the guest crashed: triple fault or panic\n"
          "   8  killed: Ctrl-A x, or a signal to end\n"
          "  10  timed out: --timeout\n"
          "  12  the guest rebooted: --on-reboot exit\n"
          "  14  so many instructions have retired: --stop-at\n"
          "  16  gnomon diverge found a difference\n"
          " odd  (v << 1) | 1, where the guest wrote v to the debug-exit port 0xF4\n"
          "gnomon info says what this host refuses.\n",
          f);
}

static void topic_trace(FILE *f)
{
    fputs("gnomon run --trace CATEGORIES[,file=PATH]\n"
          "\n"
          "  code  translated blocks: guest and host code side by side\n"
          "  exc   exceptions and interrupts delivered\n"
          "  mmu   page faults, flushes, invalidations\n"
          "  io    ports and memory-mapped registers\n"
          "  cpu   mode switches and unknown MSRs\n"
          "  all   all of them\n"
          "Categories are joined by commas: --trace exc,io,file=trace.log\n",
          f);
}

static void topic_cpu(FILE *f)
{
    fputs("gnomon run --cpu MODEL[,+FEATURE][,-FEATURE]\n"
          "\n"
          "  default               v3, or v2 where the host has no v3\n"
          "  v2 v3 v4              the x86-64 microarchitecture levels, where the host has them\n"
          "  host                  all the host has and gnomon can carry\n"
          "  pentium2 pentium 486  old processors, for old systems\n"
          "Features have the names of /proc/cpuinfo. Without a model they change the default:\n"
          "  gnomon run --cpu=-avx2 ...\n"
          "gnomon info says what this host has.\n",
          f);
}

static void topic_diverge(FILE *f)
{
    fputs("gnomon diverge [MACHINE.ini] [OPTION]... [--a OPTIONS] [--b OPTIONS]\n"
          "\n"
          "Runs one guest twice, deterministically, and finds the first instruction behind which the two runs\n"
          "are not the same: registers, chips, memory, device accesses. The options are those of gnomon run.\n"
          "  --a OPTIONS      more options for the first run, in quotes\n"
          "  --b OPTIONS      and for the second\n"
          "  --gnomon-a FILE  the first run is this gnomon's: another version, another build\n"
          "  --gnomon-b FILE  the second\n"
          "  --from COUNT     how many instructions need no comparison\n"
          "  --until COUNT    how many are compared; without it, until the guest ends\n"
          "  --every COUNT    compare at least so often (64000000)\n"
          "What leaves no trace until the next comparison is not noticed. Serial ports lead nowhere, disks must\n"
          "have snapshot=on or readonly=on, and a guest that reboots has ended. Exit statuses: 0 no difference,\n"
          "16 a difference, 2 and 4 as for gnomon run.\n"
          "  gnomon diverge --kernel bzImage --until 100000000 --b '--cell off --sandbox off'\n",
          f);
}

static const struct {
    const char *name, *help;
    void (*print)(FILE *f);
} topics[] = {
    {"run", "run a machine: every option", topic_run},
    {"machine-file", "options in a file", topic_machine_file},
    {"keys", "keys on the terminal", topic_keys},
    {"exit", "exit statuses", topic_exit},
    {"cpu", "processor models", topic_cpu},
    {"trace", "what can be logged", topic_trace},
    {"info", "what the host allows, and what follows", topic_info},
    {"diverge", "find where two runs part", topic_diverge},
};

void help_topics(FILE *f)
{
    fputs("gnomon run [MACHINE.ini] [OPTION]...   run a machine\n"
          "gnomon info [--json]                   what the host allows\n"
          "gnomon diverge [OPTION]...             find where two runs part\n"
          "gnomon help [TOPIC]                    help\n"
          "gnomon --version                       the version\n"
          "\nTopics:\n",
          f);
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++)
        fprintf(f, "  %-14s %s\n", topics[i].name, topics[i].help);
    fputs("The manual: man gnomon\n", f);
}

bool help_topic(FILE *f, const char *topic)
{
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++) {
        if (!strcmp(topics[i].name, topic)) {
            topics[i].print(f);
            return true;
        }
    }
    return false;
}

const char *help_suggest(const char *topic)
{
    const char *best = NULL;
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++)
        best = closer_word(topic, strlen(topic), best, topics[i].name);
    return best;
}
