#!/usr/bin/env python3
"""gnomon info under restrictions: what is denied is called so, with what follows, and gnomon run does as it says.

    test_info.py GNOMON GUEST
"""
import ctypes
import json
import os
import resource
import stat
import struct
import subprocess
import sys
import unittest

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import host  # noqa: E402

GNOMON, GUEST = (os.path.abspath(path) for path in sys.argv[1:3])
LIMIT_S = 30
NOBODY = 65534
# System calls by their numbers on x86-64, and what the kernel is to answer.
MADVISE, CLONE, SCHED_SETAFFINITY, TIMER_CREATE, PERF_EVENT_OPEN, SECCOMP, MEMFD_CREATE = 28, 56, 203, 222, 298, 317, 319
KILL, EPERM, EINVAL = 0x80000000, 0x50001, 0x50016


def seccomp_filter(call, answer, argument=None, value=0):
    """A preexec_fn: `call` (with that argument, if given) gets the answer, everything else is allowed."""
    code = [(0x20, 0, 0, 0), (0x15, 0, 1 if argument is None else 3, call)]
    if argument is not None:
        code += [(0x20, 0, 0, 16 + 8 * argument), (0x15, 0, 1, value)]
    code += [(0x06, 0, 0, answer), (0x06, 0, 0, 0x7fff0000)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def enter():
        if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0):
            raise OSError(ctypes.get_errno(), "no seccomp filter")
    enter.keep = text, program
    return enter


def limit(which, value):
    return lambda: resource.setrlimit(which, (value, value))


def gnomon(*arguments, **options):
    return subprocess.run([GNOMON, *arguments], capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, **options)


def run_status(*arguments, **options):
    return gnomon("run", "--kernel", GUEST, "--append", "x", *arguments, **options).returncode


class Info(unittest.TestCase):
    def info(self, **options):
        result = gnomon("info", "--json", **options)
        self.assertEqual((result.returncode, result.stderr, result.stdout.count("\n")), (0, "", 1))
        return json.loads(result.stdout)

    def test_text_has_all_that_json_has(self):
        facts = self.info()
        result = gnomon("info")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        words = " ".join(result.stdout.split())
        changing = {"memory"}
        for name, value in facts.items():
            if isinstance(value, str) and name not in changing:
                self.assertIn(" ".join(value.split()), words, name)
        self.assertLessEqual(max(len(line) for line in result.stdout.splitlines()), 100)
        for name in ("processor", "level", "avx512", "xsave", "kvm", "cpu_default", "tsc", "seccomp", "guest_memory", "populate",
                     "huge_pages", "cpus", "cpu_quota", "memory", "perf_clock", "ptrace", "userfaultfd", "modify_ldt", "pku"):
            self.assertIn(name, facts)

    def test_here_it_says_what_is_so(self):
        facts = self.info()
        self.assertEqual(facts["machines"], "yes" if run_status() == 85 else "no")
        self.assertEqual(facts["cpus"], len(os.sched_getaffinity(0)))
        with open("/proc/cpuinfo") as f:
            cpuinfo = f.read()
        flags = next(line for line in cpuinfo.splitlines() if line.startswith("flags")).split()
        self.assertEqual([facts[name] for name in ("workers", "fsgsbase")], ["allowed" if host.has_workers() else "denied"] * 2)
        self.assertEqual(facts["avx512"] == "yes", "avx512f" in flags)
        self.assertEqual(facts["virtualization"], "VMX" if "vmx" in flags else "SVM" if "svm" in flags else "no")
        self.assertEqual(facts["monitor"], "yes" if "hypervisor" in flags else "no")
        vendor, family = (next(line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith(key))
                          for key in ("vendor_id", "cpu family"))
        self.assertTrue(facts["processor_means"].startswith(f"{vendor}, family {family}, "), facts["processor_means"])
        for level in (2, 3, 4):
            refused = run_status("--cpu", f"v{level}") == 2
            self.assertEqual(refused, level > int(facts["level"][-1]))

    def test_fewer_cpus_are_counted(self):
        one = min(os.sched_getaffinity(0))
        self.assertEqual(self.info(preexec_fn=lambda: os.sched_setaffinity(0, {one}))["cpus"], 1)

    def refused(self, name, consequence, status, enter, *arguments, machines=None):
        """`name` is denied with its consequence in both forms, and gnomon run ends with `status`."""
        free = self.info()
        if free[name] == "denied":
            self.skipTest(f"the host denies it anyway: {name}")
        facts = self.info(preexec_fn=enter)
        self.assertEqual(facts[name], "denied")
        self.assertIn(consequence, facts[name + "_means"])
        self.assertEqual(facts["machines"], machines or ("yes" if status == 85 else "no"))
        text = " ".join(gnomon("info", preexec_fn=enter).stdout.split())
        self.assertIn("denied " + facts[name + "_means"], text)
        self.assertEqual(run_status(*arguments, preexec_fn=enter), status)

    def test_no_memfd_no_machine(self):
        self.refused("guest_memory", "no machine", 4, seccomp_filter(MEMFD_CREATE, EPERM))

    def test_no_timer_no_machine(self):
        self.refused("timers", "no machine", 4, seccomp_filter(TIMER_CREATE, EPERM))

    def test_a_filter_that_kills_kills_only_the_try(self):
        facts = self.info(preexec_fn=seccomp_filter(MEMFD_CREATE, KILL))
        self.assertEqual(facts["guest_memory"], "denied")
        self.assertIn("Bad system call", facts["guest_memory_means"])
        self.assertEqual(facts["timers"], "allowed")

    def test_no_seccomp_no_sandbox(self):
        enter = seccomp_filter(SECCOMP, EPERM)
        self.refused("seccomp", "--sandbox off", 4, enter, machines="limited")
        self.assertEqual(run_status("--sandbox", "off", preexec_fn=enter), 85)

    def test_what_makes_it_faster_is_not_needed(self):
        self.refused("populate", "page by page", 85, seccomp_filter(MADVISE, EINVAL, 2, 23))
        self.refused("pinning", "on different CPUs", 85, seccomp_filter(SCHED_SETAFFINITY, EPERM))

    def test_without_workers_one_line_says_so_unless_nobody_asked_for_them(self):
        enter = seccomp_filter(CLONE, EPERM, 0, 0)  # a worker is cloned without flags, other processes are not
        self.refused("workers", "one and a half times", 85, enter)
        for options, lines in (((), 1), (("--direct", "always"), 1), (("--direct", "off"), 0), (("--policy", "checked"), 0)):
            result = gnomon("run", "--kernel", GUEST, "--append", "x", *options, preexec_fn=enter)
            self.assertEqual((result.returncode, result.stderr.count("no processes of its own (Operation not permitted)"),
                              result.stderr.count("\n")), (85, lines, lines), options)

    def test_perf_is_denied_with_the_setting_that_may_be_why(self):
        facts = self.info(preexec_fn=seccomp_filter(PERF_EVENT_OPEN, EPERM))
        self.assertEqual((facts["perf_clock"], facts["perf_cycles"]), ("denied", "denied"))
        self.assertIn("perf_event_paranoid is", facts["perf_clock_means"])
        self.assertIn("Operation not permitted", facts["perf_clock_means"])

    def test_limits_that_bite(self):
        for which, name, value, consequence in (
                (resource.RLIMIT_AS, "address_space", 400 << 20, "see ulimit -v"),
                (resource.RLIMIT_FSIZE, "file_size", 100 << 20, "see ulimit -f")):
            enter = limit(which, value)
            facts = self.info(preexec_fn=enter)
            self.assertEqual((facts[name], facts["guest_memory"], facts["machines"]), (value, "limited", "limited"))
            self.assertIn("no machine of the default size", facts[name + "_means"])
            self.assertIn(consequence, facts[name + "_means"])
            self.assertIn("--memory", facts["machines_means"])
            self.assertEqual((run_status(preexec_fn=enter), run_status("--memory", "16M", preexec_fn=enter)), (4, 85))
        enter = limit(resource.RLIMIT_AS, 250 << 20)
        facts = self.info(preexec_fn=enter)
        self.assertEqual((facts["guest_memory"], facts["machines"]), ("denied", "no"))
        self.assertEqual(run_status("--memory", "16M", preexec_fn=enter), 4)
        facts = self.info(preexec_fn=limit(resource.RLIMIT_NOFILE, 8))
        self.assertIn("too few for a machine", facts["open_files_means"])
        self.assertEqual(run_status(preexec_fn=limit(resource.RLIMIT_NOFILE, 8)), 4)
        facts = self.info(preexec_fn=limit(resource.RLIMIT_SIGPENDING, 0))
        self.assertEqual((facts["timers"], run_status(preexec_fn=limit(resource.RLIMIT_SIGPENDING, 0))), ("denied", 4))

    def test_ample_limits_do_not_bite(self):
        for which, value in ((resource.RLIMIT_AS, 832 << 20), (resource.RLIMIT_FSIZE, 512 << 20), (resource.RLIMIT_NOFILE, 16)):
            enter = limit(which, value)
            self.assertEqual((self.info(preexec_fn=enter)["machines"], run_status(preexec_fn=enter)), ("yes", 85))

    def as_nobody(self):
        """Options of subprocess.run() for a user without rights."""
        options = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if options and subprocess.run(["test", "-x", GNOMON], **options).returncode:
            self.skipTest("the build directory is not for other users")
        return options

    def test_where_no_process_can_be_made_nothing_is_tried(self):
        options = {**self.as_nobody(), "preexec_fn": limit(resource.RLIMIT_NPROC, 0)}
        facts = self.info(**options)
        self.assertEqual((facts["processes"], facts["seccomp"], facts["machines"]), ("not tried", "not tried", "no"))
        self.assertIn("no machine", facts["processes_means"])
        self.assertEqual(run_status(**options), 4)

    @unittest.skipUnless(os.path.exists("/dev/kvm"), "no /dev/kvm here")
    def test_kvm_is_denied_to_those_who_may_not_open_it_and_costs_nothing(self):
        options = self.as_nobody()
        with_rights = subprocess.run(["sh", "-c", ": <>/dev/kvm"], stderr=subprocess.DEVNULL, **options)
        facts = self.info(**options)
        self.assertEqual(facts["kvm"], "denied" if with_rights.returncode else "allowed")
        self.assertIn("no engine uses it yet", facts["kvm_means"])
        self.assertIn(f"mode {stat.S_IMODE(os.stat('/dev/kvm').st_mode):04o}", facts["kvm_means"])
        self.assertEqual(facts["machines"], "yes")

    def test_wrong_words(self):
        for words in (["all"], ["--json", "all"], ["--jason"]):
            result = gnomon("info", *words)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertRegex(result.stderr, rf"^gnomon: unexpected word: {words[-1]}: .*--json.*\n$")
        self.assertEqual(gnomon("info", "--help").stdout, gnomon("help", "info").stdout)


unittest.main(argv=sys.argv[:1] + sys.argv[3:])
