// Exit statuses of the gnomon command. All are even, because a guest that writes v to the debug-exit port
// 0xF4 chooses the odd status (v << 1) | 1. docs/gnomon.1 and `gnomon help exit` list them;
// tests/unit/test_options.c compares.
#pragma once

enum exit_status {
    EXIT_POWERED_OFF = 0,   // the guest powered itself off
    EXIT_USAGE = 2,         // a wrong option, machine file or value
    EXIT_HOST_ERROR = 4,    // the host refused something, or gnomon itself failed
    EXIT_GUEST_CRASHED = 6, // triple fault or pvpanic
    EXIT_KILLED = 8,        // Ctrl-A x, SIGTERM, SIGINT, SIGHUP or SIGQUIT
    EXIT_TIMED_OUT = 10,    // --timeout
    EXIT_REBOOTED = 12,     // the guest asked for a reset and --on-reboot is exit
    EXIT_COUNTED = 14,      // --stop-at
    EXIT_DIFFERENT = 16,    // gnomon diverge found a difference
};
