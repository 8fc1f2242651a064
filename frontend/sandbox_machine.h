// The sandbox of the machine process: the one with devices, files and sockets, where no guest code ever runs.
#pragma once

// To be called when all files, sockets and threads are there: from then on, in all threads, the process can
// use what it has and get nothing new. cell: the process that runs guest code; workers: those beside it. A call that
// is not allowed ends the process with a line and EXIT_HOST_ERROR, the terminal put back. Returns 0 or -errno: the host's
// kernel gives no filter.
int sandbox_machine(int cell, const int *workers, unsigned worker_count);
