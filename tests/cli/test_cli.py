#!/usr/bin/env python3
"""Drives the gnomon command as a user does: usage errors, exit statuses, sockets, and the terminal.

    test_cli.py GNOMON GUEST MISBEHAVE
GUEST is tests/cli/guest.S, MISBEHAVE tests/cli/misbehave.c, built. Every test has a time limit; none sleeps for a fixed time to wait for something.
"""
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import unittest

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import host  # noqa: E402

GNOMON, GUEST, MISBEHAVE = (os.path.abspath(path) for path in sys.argv[1:4])
LIMIT_S = 30
WORKERS = host.has_workers()


def gnomon(*arguments, **options):
    options = {"stdin": subprocess.DEVNULL, **options}
    result = subprocess.run([GNOMON, *arguments], capture_output=True, text=True, timeout=LIMIT_S, **options)
    result.stderr = host.said(result.stderr, WORKERS)
    return result


def boot(what, *arguments, **options):
    return gnomon("run", "--kernel", GUEST, "--append", what, *arguments, **options)


class Terminal:
    """gnomon on a pseudo-terminal, in a session of its own."""

    def __init__(self, *arguments, **options):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.text = b""
        self.process = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, *arguments], stdin=self.slave, stdout=self.slave,
                                        stderr=self.slave, start_new_session=True, **options)

    def until(self, condition, what):
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {LIMIT_S} s: {what}; the terminal shows {self.text!r}")
            self.read(0.02)

    def read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            self.text += os.read(self.master, 4096)

    def shows(self, text):
        self.until(lambda: text in self.text, text)

    def raw(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def restored(self):
        return termios.tcgetattr(self.slave) == self.before

    def child(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            return int(f.read())

    def state(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]

    def end(self):
        self.until(lambda: self.process.poll() is not None, "the end")
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


class Words(unittest.TestCase):
    def one_line(self, result, status, *parts):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("gnomon: "), result.stderr)
        for part in parts:
            self.assertIn(part, result.stderr)

    def test_no_argument_says_what_to_type_first(self):
        result = gnomon()
        self.assertEqual(result.returncode, 0)
        self.assertIn("./try", result.stdout)
        self.assertLess(result.stdout.count("\n"), 20)

    def test_version_help_and_info(self):
        self.assertRegex(gnomon("--version").stdout, r"^gnomon \d+\.\d+\.\d+\n$")
        topics = [line.split()[0] for line in gnomon("help").stdout.split("Topics:")[1].splitlines() if line.startswith("  ")]
        self.assertGreaterEqual(len(topics), 6)
        for topic in topics:
            result = gnomon("help", topic)
            self.assertEqual(result.returncode, 0, topic)
            self.assertGreater(len(result.stdout), 40)
            self.assertLessEqual(max(map(len, result.stdout.splitlines())), 100, topic)
        for words in (["help", "help"], ["help", "--help"], ["--help"]):
            self.assertEqual(gnomon(*words).stdout, gnomon("help").stdout, words)
        self.assertEqual(gnomon("run", "--help").stdout, gnomon("help", "run").stdout)
        self.assertIn("processor", gnomon("info").stdout)

    def test_a_full_disk_under_standard_output_is_an_error(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([GNOMON, "help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
        self.one_line(result, 4, "standard output")

    def test_usage_errors(self):
        self.one_line(gnomon("walk"), 2, "walk")
        self.one_line(gnomon("help", "nothing"), 2, "nothing", "gnomon help lists them")
        self.one_line(gnomon("help", "run", "exit"), 2, "exit", "one topic")
        for words, meant in ((["rnu"], "run"), (["hepl"], "help"), (["--versoin"], "--version"), (["help", "exits"], "exit"),
                             (["help", "machine_file"], "machine-file")):
            self.one_line(gnomon(*words), 2, f"{words[-1]}: did you mean {meant}?")
        for word in ("--kernel", "vmlinuz", ""):
            self.one_line(gnomon(word), 2, "the first word is run, info, diverge or help")
        self.one_line(gnomon("run"), 2, "nothing to boot")
        self.one_line(gnomon("run", "--memroy", "1G"), 2, "did you mean --memory?")
        self.one_line(boot("x", "--cpus", "2"), 2, "--cpus")
        self.one_line(boot("x", "--engine", "hardware"), 2, "--engine")
        self.one_line(boot("x", "--cpu", "z80"), 2, "z80")
        self.one_line(boot("x", "--cpu", "host,+warp"), 2, "warp")

    def test_files_that_are_no_kernels(self):
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "file")
            with open(GUEST, "rb") as f:
                truncated = f.read(100)
            contents = [b"", b"x", b"hello\n" * 1000, os.urandom(65536), b"\x7fELF" + bytes(60), truncated]
            for content in contents:
                with open(path, "wb") as f:
                    f.write(content)
                self.one_line(gnomon("run", "--kernel", path), 2, path)
            self.one_line(gnomon("run", "--kernel", work), 2, work)
            self.one_line(gnomon("run", "--kernel", path + ".none"), 2, path + ".none")
            self.one_line(boot("x", "--initrd", path + ".none"), 2, path + ".none")
            self.one_line(boot("x", "--disk", path + ".none"), 2, path + ".none")
            self.one_line(gnomon("run", "--bios", path), 2, path)

    def test_an_unwritable_serial_file_is_a_host_error(self):
        self.one_line(boot("x", "--serial", "file:/no/such/file"), 4, "/no/such/file")

    def test_a_failed_start_leaves_nothing(self):
        with tempfile.TemporaryDirectory() as work:
            result = gnomon("run", "--kernel", "/no/such/kernel", "--serial", f"file:{work}/log", "--serial", f"unix:{work}/sock")
            self.assertEqual(result.returncode, 2)
            self.assertEqual(os.listdir(work), [])

    def test_diverge_refuses_what_it_cannot_do(self):
        for words in (["--until"], ["--until", "x"], ["--from", "5", "--until", "3"], ["--every", "0"], ["--a"], ["--a", "--zzz"],
                      ["--a", "'open"], ["--gnomon-b", "/none"], ["--stats"], ["--serial", "stdio"], ["--serial", "file:/dev/null"], ["--debugcon", "file:/dev/null"],
                      ["--timeout", "3"], ["--disk", GUEST], ["--b", f"--disk {GUEST}"]):
            self.one_line(gnomon("diverge", "--kernel", GUEST, *words), 2, "")
        self.one_line(gnomon("diverge", "--kernel", GUEST, "--disk", GUEST), 2, "--disk", "snapshot=on")
        self.one_line(gnomon("diverge", "--kernel", "/none"), 2, "/none: No such file")

    def test_diverge_without_processes_ends_nobody_elses(self):
        done = gnomon("diverge", "--kernel", GUEST, env={**os.environ, "LD_PRELOAD": MISBEHAVE, "MISBEHAVE": "fork"})
        self.one_line(done, 4, "can't make a process")

    def test_diverge_finds_what_differs_and_nothing_else(self):
        done = gnomon("diverge", "--kernel", GUEST, "--append", "x", "--memory", "32M", "--b", "--cell off --sandbox off")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("No difference in ", done.stdout)
        done = gnomon("diverge", "--kernel", GUEST, "--append", "x", "--memory", "32M", "--b", "--append 'x '")
        self.assertEqual((done.returncode, done.stderr), (16, ""))
        self.assertIn("not the same before their first instruction", done.stdout)
        self.assertIn("a: 00  b: 20", done.stdout)


class Statuses(unittest.TestCase):
    def test_debug_exit_gives_the_guests_status(self):
        result = boot("x")
        self.assertEqual((result.returncode, result.stdout), (85, "up\n"))

    def test_triple_fault_is_6_and_shows_the_processor(self):
        result = boot("t")
        self.assertEqual(result.returncode, 6)
        for word in ("triple fault", "RIP", "CR3", "GDTR", "ud2"):
            self.assertIn(word, result.stderr)

    def test_a_crash_report_shows_the_last_blocks_and_the_calls_under_way(self):
        reports = [boot("c").stderr, boot("c", "--cell", "off", "--sandbox", "off").stderr]
        for report in reports:
            _, blocks = report.split("last blocks, newest first")
            blocks, calls = blocks.split("calls under way, innermost first")
            rows = [(int(line.split()[0], 16), line.split("CPL 0  ")[1]) for line in blocks.splitlines()[1:]]
            fault = int(report.split("\nRIP ")[1].split()[0], 16)
            self.assertEqual([what.split(",")[0] for _, what in rows[:5]], ["exception 6", "ud", "block", "lidt", "block"])
            self.assertEqual([rip for rip, _ in rows[:5]], [fault] * 3 + [fault - 7] * 2)
            self.assertIn(f"last exception 6 error 0 at {fault:016x}", report)
            # CALL rel32 is 5 bytes, and LIDT follows the second one
            self.assertEqual([int(line.split()[0], 16) for line in calls.splitlines()[1:]], [fault - 7 - 5, fault - 7 - 10])

    def test_triple_fault_may_reset_or_halt(self):
        for what in ("reset", "halt"):
            result = boot("t", "--on-crash", what, "--timeout", "1")
            self.assertEqual(result.returncode, 10, what)
            ups = result.stdout.count("up")
            self.assertEqual(ups == 1, what == "halt", f"{what}: {ups}")

    def test_reset_boots_again_or_is_12(self):
        self.assertEqual(boot("r", "--on-reboot", "exit").returncode, 12)
        result = boot("r", "--timeout", "1")
        self.assertEqual(result.returncode, 10)
        self.assertGreater(result.stdout.count("up"), 1)

    def test_time_limit_is_10_for_a_loop_and_for_a_halted_cpu(self):
        for what in ("l", "h"):
            start = time.monotonic()
            self.assertEqual(boot(what, "--timeout", "0.5").returncode, 10)
            self.assertLess(time.monotonic() - start, 5)

    def test_signals_to_end_are_8(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            process = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, "--append", "l"], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE)
            self.assertEqual(process.stdout.read(4), b"up\r\n")
            process.send_signal(number)
            self.assertEqual(process.wait(timeout=LIMIT_S), 8)
            process.stdout.close()

    def test_stats_are_one_line_of_json(self):
        result = boot("x", "--stats=json")
        self.assertGreater(json.loads(result.stderr)["time_wall"], 0)

    def test_stats_divide_the_time(self):
        parts = ("translated", "helpers", "translator", "devices", "idle", "stopped")
        for what, largest in (("l", "translated"), ("h", "idle")):
            for more in ((), ("--cell", "off", "--sandbox", "off")):
                figures = json.loads(boot(what, "--timeout", "0.5", "--stats=json", *more).stderr)
                wall = figures["time_wall"]
                self.assertGreater(wall, 400_000_000)
                self.assertAlmostEqual(sum(figures["time_" + part] for part in parts) / wall, 1, delta=0.02)
                self.assertGreater(figures["share_" + largest], 0.8, figures)
                self.assertAlmostEqual(figures["share_" + largest], figures["time_" + largest] / wall, delta=1e-5)
                self.assertGreater(figures["samples"], 10)
                cpu = sum(figures["time_cpu_" + part] for part in ("translated", "helpers", "translator", "devices"))
                self.assertLessEqual(cpu, 1.2 * (figures["time_cpu_user"] + figures["time_cpu_system"]) + 50_000_000)
                if what == "l":
                    self.assertGreater(figures["time_cpu_translated"], 0.5 * cpu)

    def test_a_guest_that_polls_a_port_spends_its_time_with_devices_and_helpers(self):
        figures = json.loads(boot("e", "--timeout", "0.5", "--stats=json").stderr)
        self.assertGreater(figures["share_devices"] + figures["share_helpers"], 0.6, figures)
        self.assertGreater(figures["share_devices"], 0.03, figures)
        self.assertGreater(figures["core_port"], 1000)

    def test_stats_count_links_indirect_branches_and_returns(self):
        figures = json.loads(boot("i", "--stats=json").stderr)
        for name, least in (("blocks_entered", 20000), ("chained_jumps", 10000), ("indirect_lookups", 10000), ("returns", 10000)):
            self.assertGreaterEqual(figures[name], least - 20, name) # links and the first lookups go through C
            self.assertLess(figures[name], least + 500, name)
        for rate in ("chain_hit_rate", "indirect_hit_rate", "return_hit_rate"):
            self.assertGreater(figures[rate], 0.98, rate)
            self.assertLessEqual(figures[rate], 1, rate)

    def test_stats_as_text_are_grouped_and_aligned(self):
        lines = boot("i", "--stats").stderr.splitlines()
        headings = [line for line in lines if line and not line.startswith(" ")]
        self.assertEqual(headings[:5], ["time on the wall", "guest time by how code is run", "processor time, of all processes", "translator",
                                            "control flow"])
        rows = [line for line in lines if line.startswith("  ")]
        self.assertEqual({line[39:55].strip().replace(".", "").isdigit() for line in rows}, {True}, rows)
        self.assertRegex("\n".join(lines), r"  time_translator +\d+\.\d{6} s +\d+\.\d\d %\n")

    def test_trace_exc_shows_every_step_of_a_triple_fault_and_trace_mmu_none_of_it(self):
        lines = [line for line in boot("t", "--trace", "exc").stderr.splitlines() if line.startswith("exc ")]
        self.assertEqual([line.split(" rip ")[0] for line in lines],
                         ["exc  #UD vector 6", "exc  #GP vector 13 error 0x33", "exc  #DF vector 8 error 0"])
        self.assertEqual(len({line.split(" rip ")[1] for line in lines}), 1)
        lines = [line for line in boot("t", "--trace", "mmu").stderr.splitlines() if line.startswith(("exc ", "mmu  #"))]
        self.assertEqual(lines, [])


def connect(path):
    deadline = time.monotonic() + LIMIT_S
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LIMIT_S)
    while True:
        try:
            client.connect(path)
            return client
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def status_of(pid, key, task=None):
    with open(f"/proc/{pid}/task/{task or pid}/status") as f:
        return int(next(line.split()[1] for line in f if line.startswith(key + ":")))


class Sandbox(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.TemporaryDirectory()
        self.addCleanup(self.work.cleanup)
        self.socket = os.path.join(self.work.name, "sock")

    def start(self, *arguments, **options):
        process = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, "--append", "e", *arguments], stdin=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.read(3), "up\n")
        return process

    def filters(self, pid, task=None):
        return status_of(pid, "Seccomp_filters", task) - status_of("self", "Seccomp_filters", os.getpid())

    @unittest.skipUnless("Seccomp_filters" in open("/proc/self/status").read(), "Linux before 5.9 does not tell")
    def test_every_thread_of_the_process_with_the_devices_has_a_filter(self):
        process = self.start("--serial", "stdio", "--serial", f"unix:{self.socket}")
        tasks = os.listdir(f"/proc/{process.pid}/task")
        self.assertGreaterEqual(len(tasks), 3)
        for task in tasks:
            self.assertEqual(self.filters(process.pid, task), 1)
            self.assertEqual(status_of(process.pid, "NoNewPrivs", task), 1)
        process = self.start("--sandbox", "off")
        self.assertEqual(self.filters(process.pid), 0)

    def test_a_forbidden_call_ends_it_with_one_line_and_nothing_stays(self):
        process = self.start("--serial", "stdio", "--serial", f"unix:{self.socket}", env={**os.environ, "LD_PRELOAD": MISBEHAVE})
        connect(self.socket).close()
        self.assertEqual(process.wait(LIMIT_S), 4)
        self.assertRegex(host.said(process.stderr.read(), WORKERS), r"^gnomon: forbidden system call 41: .*sandbox.*: please report.*\n$")
        deadline = time.monotonic() + LIMIT_S
        while os.path.exists(self.socket): # its sweeper runs a moment longer
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_with_the_sandbox_off_the_same_call_is_made(self):
        process = self.start("--serial", "stdio", "--serial", f"unix:{self.socket}", "--sandbox", "off",
                             env={**os.environ, "LD_PRELOAD": MISBEHAVE})
        connect(self.socket).close()
        connect(self.socket).close() # it serves on
        process.terminate()
        self.assertEqual(process.wait(LIMIT_S), 8)

    def test_on_a_terminal_the_terminal_is_restored(self):
        terminal = Terminal("--append", "l", "--serial", "stdio", "--serial", f"unix:{self.socket}",
                            env={**os.environ, "LD_PRELOAD": MISBEHAVE})
        self.addCleanup(terminal.close)
        terminal.shows(b"up")
        self.assertTrue(terminal.raw())
        connect(self.socket).close()
        self.assertEqual(terminal.end(), 4)
        self.assertTrue(terminal.restored())
        terminal.shows(b"forbidden system call 41")

    def test_a_killed_machine_leaves_no_socket(self):
        process = self.start("--serial", "stdio", "--serial", f"unix:{self.socket}")
        process.kill()
        deadline = time.monotonic() + LIMIT_S
        while os.path.exists(self.socket):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_a_socket_that_took_the_place_of_ours_stays(self):
        process = self.start("--serial", "stdio", "--serial", f"unix:{self.socket}")
        os.unlink(self.socket)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(self.socket)
            process.terminate()
            self.assertEqual(process.wait(LIMIT_S), 8)
            self.assertTrue(os.path.exists(self.socket))


class PerfMap(unittest.TestCase):
    def test_translated_code_is_named_in_a_file_that_the_last_line_names(self):
        for more in ((), ("--trace", "code,file=/dev/null"), ("--cell", "off", "--sandbox", "off")):
            result = boot("x", "--perf", *more)
            self.assertEqual(result.returncode, 85, result.stderr)
            path = re.fullmatch(r"gnomon: perf's map is (/tmp/perf-\d+\.map)\n", result.stderr)[1]
            with open(path) as f:
                rows = [line.split() for line in f]
            os.unlink(path)
            self.assertTrue(any(re.fullmatch("guest_20[0-9a-f]{4}_32_cpl0", name) for _, _, name in rows), rows)
            self.assertIn("gnomon_stub_sensitive", [name for _, _, name in rows])
            spans = sorted((int(start, 16), int(size, 16)) for start, size, _ in rows)
            for (start, size), (following, _) in zip(spans, spans[1:]):
                self.assertLessEqual(start + size, following)

    def test_without_the_option_there_is_no_file(self):
        before = {name for name in os.listdir("/tmp") if name.startswith("perf-")}
        self.assertEqual(boot("x").stderr, "")
        self.assertEqual(boot("x", "--perf=off").stderr, "")
        self.assertEqual({name for name in os.listdir("/tmp") if name.startswith("perf-")}, before)

    def test_a_name_that_is_taken_is_a_host_error(self):
        with tempfile.TemporaryDirectory() as work:
            for _ in range(5): # others make processes too
                first = subprocess.Popen(["true"])
                first.wait()
                links = [f"/tmp/perf-{first.pid + i}.map" for i in range(1, 2000)]
                made = []
                try:
                    for link in links:
                        try:
                            os.symlink(os.path.join(work, "target"), link)
                            made.append(link)
                        except FileExistsError:
                            pass
                    result = boot("x", "--perf")
                finally:
                    for link in made:
                        os.unlink(link)
                if result.returncode == 4:
                    break
                os.unlink(result.stderr.split()[-1])
            self.assertEqual(result.returncode, 4)
            self.assertRegex(result.stderr, r"^gnomon: can't write perf's map \(File exists\): /tmp/perf-\d+\.map: remove what is there\n$")
            self.assertEqual((os.listdir(work), result.stdout), ([], ""))


class BackEnds(unittest.TestCase):
    def test_machine_file_and_serial_file(self):
        with tempfile.TemporaryDirectory() as work:
            os.symlink(GUEST, os.path.join(work, "kernel"))
            path = os.path.join(work, "vm.ini")
            with open(path, "w") as f:
                f.write("[machine]\nkernel = kernel\nappend = x\nserial = file:log\n")
            self.assertEqual(gnomon("run", path, cwd="/").returncode, 85)
            with open(os.path.join(work, "log"), "rb") as f:
                self.assertEqual(f.read(), b"up\r\n")

    def test_files_of_the_last_run_are_overwritten(self):
        with tempfile.TemporaryDirectory() as work:
            for name in ("log", "trace"):
                with open(os.path.join(work, name), "w") as f:
                    f.write("old" * 100000)
            self.assertEqual(boot("x", "--serial", "file:log", "--trace", "cpu,file=trace", cwd=work).returncode, 85)
            with open(os.path.join(work, "log"), "rb") as f:
                self.assertEqual(f.read(), b"up\r\n")
            with open(os.path.join(work, "trace")) as f:
                self.assertNotIn("old", f.read())

    def test_output_that_cannot_be_written_is_said_once(self):
        for arguments, word in ((["--serial", "file:/dev/full"], "/dev/full"),
                                (["--serial", "none", "--trace", "io,file=/dev/full"], "trace")):
            result = boot("x", *arguments)
            self.assertEqual(result.returncode, 85)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertIn(word, result.stderr)
        for error, file in (("No space left", "/dev/full"), ("Broken pipe", None)):
            if file:
                out = os.open(file, os.O_WRONLY)
            else:
                reader, out = os.pipe()
                os.close(reader)
            result = subprocess.run([GNOMON, "run", "--kernel", GUEST, "--append", "r", "--timeout", "0.5"], stdout=out,
                                    stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
            os.close(out)
            self.assertEqual(result.returncode, 10)
            self.assertRegex(host.said(result.stderr, WORKERS), fr"^gnomon: can't write what COM1 prints \({error}.*\): standard output: .*\n$")

    def test_closed_standard_files_are_nobody_elses(self):
        with tempfile.TemporaryDirectory() as work:
            disk = os.path.join(work, "disk")
            with open(disk, "wb") as f:
                f.truncate(65536)
            command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", GNOMON, "run", "--kernel", GUEST, "--append", "x"]
            self.assertEqual(subprocess.run([*command, "--disk", disk], timeout=LIMIT_S).returncode, 85)
            with open(disk, "rb") as f:
                self.assertEqual(f.read().strip(b"\0"), b"")
            result = subprocess.run(["sh", "-c", '"$@" >&-', "sh", GNOMON, "help"], stderr=subprocess.PIPE, timeout=LIMIT_S)
            self.assertEqual(result.returncode, 4)

    def test_a_pipe_is_echoed_whole(self):
        text = "".join(f"line {i}\n" for i in range(2000))
        process = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, "--append", "e", "--timeout", str(LIMIT_S)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdin.write(text)
        process.stdin.close()
        self.assertEqual(process.stdout.read(len("up\n") + len(text)), "up\n" + text)
        process.terminate()
        self.assertEqual(process.wait(timeout=LIMIT_S), 8)
        process.stdout.close()

    def test_socket_and_a_second_machine_on_it(self):
        with tempfile.TemporaryDirectory() as work:
            path = os.path.join(work, "sock")
            process = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, "--append", "e", "--serial", f"unix:{path}"],
                                       stdin=subprocess.DEVNULL)
            client = connect(path)
            client.sendall(b"ping")
            got = b""
            while not got.endswith(b"ping"):
                got += client.recv(100)
            result = boot("x", "--serial", f"unix:{path}")
            self.assertEqual(result.returncode, 4)
            self.assertIn("another machine", result.stderr)
            process.terminate()
            self.assertEqual(process.wait(timeout=LIMIT_S), 8)
            client.close()
            self.assertFalse(os.path.exists(path))

    def test_pseudo_terminal_is_named_and_works(self):
        process = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, "--append", "e", "--serial", "pty"],
                                   stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        line = process.stderr.readline()
        self.assertRegex(line, r"^gnomon: COM1 is /dev/pts/\d+\n$")
        fd = os.open(line.split()[-1], os.O_RDWR | os.O_NOCTTY)
        os.write(fd, b"ping")
        got = b""
        while not got.endswith(b"ping"):
            self.assertTrue(select.select([fd], [], [], LIMIT_S)[0])
            got += os.read(fd, 100)
        os.close(fd)
        process.terminate()
        self.assertEqual(process.wait(timeout=LIMIT_S), 8)
        process.stderr.close()


class OnATerminal(unittest.TestCase):
    def start(self, *arguments):
        terminal = Terminal(*arguments)
        self.addCleanup(terminal.close)
        terminal.shows(b"up")
        self.assertTrue(terminal.raw())
        return terminal

    def ends(self, terminal, status):
        self.assertEqual(terminal.end(), status)
        self.assertTrue(terminal.restored())

    def test_ctrl_a_x_ends_a_loop(self):
        terminal = self.start("--append", "l")
        os.write(terminal.master, b"\x01x")
        self.ends(terminal, 8)

    def test_ctrl_a_x_ends_a_guest_that_takes_no_bytes(self):
        terminal = self.start("--append", "l")
        os.set_blocking(terminal.master, False)
        sent = 0
        while sent < 20000 and select.select([], [terminal.master], [], LIMIT_S)[1]:
            sent += os.write(terminal.master, b"x" * 1000)
        self.assertGreaterEqual(sent, 20000)
        os.set_blocking(terminal.master, True)
        os.write(terminal.master, b"\x01x")
        self.ends(terminal, 8)

    def test_keys_reach_the_guest_and_ctrl_a_commands_do_not(self):
        terminal = self.start("--append", "e")
        os.write(terminal.master, b"a\x03\x1a\x01\x01b")
        terminal.shows(b"a\x03\x1a\x01b")
        os.write(terminal.master, b"\x01h")
        terminal.shows(b"this list")
        os.write(terminal.master, b"\x01s")
        terminal.shows(b"time_wall")
        terminal.shows(b"helper_")
        self.assertNotIn(b"time_translated", terminal.text) # nothing is measured without --stats
        os.write(terminal.master, b"\x01x")
        self.ends(terminal, 8)

    def test_terminal_is_restored_when_the_machine_ends(self):
        terminal = Terminal("--append", "x")
        self.addCleanup(terminal.close)
        self.ends(terminal, 85)

    def test_terminal_is_restored_after_a_crash_of_ours(self):
        terminal = self.start("--append", "l")
        os.kill(terminal.child(), signal.SIGKILL)
        self.ends(terminal, 8)
        terminal = self.start("--append", "h")
        os.kill(terminal.child(), signal.SIGABRT)
        self.ends(terminal, 4)
        terminal.shows(b"crashed")

    def test_terminal_is_restored_when_the_watcher_is_killed(self):
        terminal = self.start("--append", "l")
        os.kill(terminal.process.pid, signal.SIGKILL)
        terminal.until(terminal.restored, "the terminal restored")

    def test_terminal_is_restored_while_stopped(self):
        terminal = self.start("--append", "l")
        os.kill(terminal.process.pid, signal.SIGTSTP)
        terminal.until(lambda: terminal.state() == "T", "stopped")
        self.assertTrue(terminal.restored())
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.until(terminal.raw, "raw again")
        os.write(terminal.master, b"\x01x")
        self.ends(terminal, 8)

    def test_usage_error_leaves_the_terminal_alone(self):
        terminal = Terminal("--memory", "lots")
        self.addCleanup(terminal.close)
        self.ends(terminal, 2)


unittest.main(argv=sys.argv[:1] + sys.argv[4:])
