#!/usr/bin/env python3
"""Bad input through the real program: one line on standard error, the right exit status, and nothing left behind.

    test_bad_input.py GNOMON GUEST
GUEST is tests/cli/guest.S, built. Every case runs in a directory of its own, which is also its TMPDIR, on a terminal whose
modes are compared.
"""
import os
import pty
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import host  # noqa: E402

GNOMON, GUEST = (os.path.abspath(path) for path in sys.argv[1:3])
WORKERS = host.has_workers()
LIMIT_S = 30
USAGE, HOST_ERROR = 2, 4


def bzimage(version=0x20F, setup_sectors=3, size=0x2000, **fields):
    """A bzImage header as Linux Documentation/arch/x86/boot.rst has it, in front of zeros."""
    image = bytearray(size)

    def put(offset, form, value):
        struct.pack_into("<" + form, image, offset, value)
    put(0x1F1, "B", setup_sectors)
    put(0x1FE, "H", 0xAA55)
    put(0x200, "H", 0x66EB)
    image[0x202:0x206] = b"HdrS"
    put(0x206, "H", version)
    put(0x211, "B", 1)
    put(0x214, "I", 0x100000)
    put(0x22C, "I", fields.get("initrd_addr_max", 0x7FFFFFFF))
    put(0x230, "I", 0x200000)
    put(0x234, "B", 1)
    put(0x236, "H", fields.get("xloadflags", 0))
    put(0x238, "I", 2047)
    put(0x258, "Q", 0x1000000)
    put(0x260, "I", fields.get("init_size", 0x400000))
    return bytes(image)


class Case(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.TemporaryDirectory()
        self.addCleanup(self.work.cleanup)
        self.files = {}
        self.master, self.slave = pty.openpty()
        self.addCleanup(os.close, self.master)
        self.addCleanup(os.close, self.slave)

    def path(self, name):
        return os.path.join(self.work.name, name)

    def file(self, name, content):
        with open(self.path(name), "wb") as f:
            f.write(content)
        self.files[name] = content
        return self.path(name)

    def listing(self):
        return {name: os.path.getsize(self.path(name)) for name in os.listdir(self.work.name)}

    def refused(self, status, arguments, *words, run=True, cwd=None, limits=()):
        """The program ends with this status and one line that holds the words, and has changed nothing."""
        files, modes = self.listing(), termios.tcgetattr(self.slave)
        limited = ["prlimit", *limits] if limits else []
        process = subprocess.run([*limited, GNOMON, *(["run"] if run else []), *arguments], stdin=self.slave, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, timeout=LIMIT_S, cwd=cwd or self.work.name,
                                 env={**os.environ, "TMPDIR": self.work.name}, start_new_session=True)
        text = host.said(process.stderr.decode(errors="replace"), WORKERS)
        self.assertEqual(process.returncode, status, text)
        self.assertEqual(process.stdout, b"")
        self.assertEqual(text.count("\n"), 1, text)
        self.assertTrue(text.startswith("gnomon: ") and text.endswith("\n"), text)
        self.assertGreaterEqual(text.count(": "), 2, f"what, where and what to do: {text}")
        self.assertLess(len(text), 600)
        for character in text[:-1]:
            self.assertGreaterEqual(character, " ", text)
        for word in words:
            self.assertIn(word, text)
        self.assertEqual(self.listing(), files)
        self.assertEqual(termios.tcgetattr(self.slave), modes)


class Kernels(Case):
    def test_no_kernel_at_all(self):
        for name, content in (("empty", b""), ("text", b"hello\n" * 500), ("noise", random.Random(1).randbytes(70000)),
                              ("gzip", b"\x1f\x8b\x08" + bytes(5000)), ("sector", bytes(510) + b"\x55\xaa"),
                              ("elf", b"\x7fELF\x02\x01\x01" + bytes(57)), ("script", b"#!/bin/sh\n")):
            self.refused(USAGE, ["--kernel", self.file(name, content)], "kernel", name)

    def test_an_executable_of_the_host(self):
        self.refused(USAGE, ["--kernel", "/bin/true"], "/bin/true")

    def test_directories_devices_and_nothing(self):
        self.refused(USAGE, ["--kernel", self.work.name], self.work.name)
        self.refused(USAGE, ["--kernel", "/dev/null"], "/dev/null")
        self.refused(USAGE, ["--kernel", self.path("none")], "none")
        self.refused(USAGE, ["--kernel", ""], "--kernel")
        self.refused(USAGE, [], "nothing to boot")

    def test_a_boot_protocol_too_old_or_a_newer_major_one(self):
        self.refused(USAGE, ["--kernel", self.file("old", bzimage(version=0x105))], "old", "protocol")
        self.refused(USAGE, ["--kernel", self.file("new", bzimage(version=0x300))], "new", "protocol")

    def test_a_kernel_cut_anywhere(self):
        whole = bzimage()
        for size in (1, 0x1F0, 0x1FF, 0x200, 0x206, 0x210, 0x264, 0x3FF, 0x400, 0x7FF):
            self.refused(USAGE, ["--kernel", self.file("cut", whole[:size])], "cut")
        with open(GUEST, "rb") as f:
            whole = f.read()
        for size in (4, 16, 40, 52, 60, 100):
            self.refused(USAGE, ["--kernel", self.file("cut", whole[:size])], "cut")

    def test_a_kernel_that_needs_more_memory(self):
        path = self.file("large", bzimage(init_size=0x7F000000))
        self.refused(USAGE, ["--kernel", path, "--memory", "64M"], "large", "memory")

    def test_a_command_line_too_long(self):
        self.refused(USAGE, ["--kernel", self.file("kernel", bzimage()), "--append", "x" * 5000], "append")


class Initrds(Case):
    def test_one_that_does_not_fit(self):
        kernel = self.file("kernel", bzimage())
        with open(self.path("initrd"), "wb") as f:
            f.truncate(100 << 20)
        self.refused(USAGE, ["--kernel", kernel, "--memory", "64M", "--initrd", self.path("initrd")], "initrd", "--memory")

    def test_one_that_fits_only_above_what_the_kernel_reaches(self):
        kernel = self.file("kernel", bzimage(initrd_addr_max=0x1FFFFFF))
        with open(self.path("initrd"), "wb") as f:
            f.truncate(48 << 20)
        self.refused(USAGE, ["--kernel", kernel, "--memory", "512M", "--initrd", self.path("initrd")], "initrd")

    def test_missing_and_no_file(self):
        self.refused(USAGE, ["--kernel", GUEST, "--initrd", self.path("none")], "none")
        self.refused(USAGE, ["--kernel", GUEST, "--initrd", self.work.name], self.work.name)


class Firmware(Case):
    def test_sizes_that_are_none(self):
        for size in (0, 1, 4096, 65535, 65537, 17 << 20):
            with open(self.path("bios"), "wb") as f:
                f.truncate(size)
            self.refused(USAGE, ["--bios", self.path("bios")], "bios")

    def test_firmware_and_kernel_exclude_each_other(self):
        self.refused(USAGE, ["--bios", self.file("bios", bytes(65536)), "--kernel", GUEST], "kernel", "bios")


class Values(Case):
    def test_memory(self):
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--memory", "900G"], "memory", "921600 MiB", "--memory")
        for value in ("0", "999T", "100K", "1.5G", "-1", "2000G", "99999999999999999999G", "G", "", "1MB"):
            self.refused(USAGE, ["--kernel", GUEST, f"--memory={value}"], "--memory")

    def test_cpu_models_and_features(self):
        for value, word in (("z80", "z80"), ("", "--cpu"), ("host,+warp", "warp"), ("host,warp", "warp"), ("host,-", "cpu"),
                            ("host,,", "cpu"), ("a" * 5000, "cpu"), ("v9", "v9")):
            self.refused(USAGE, ["--kernel", GUEST, f"--cpu={value}"], word)

    def test_every_option_with_a_senseless_value(self):
        for option in ("cpus", "engine", "stats", "trace", "on-crash", "on-reboot", "timeout", "display", "serial", "debugcon",
                       "sandbox", "cell", "perf", "deterministic", "stop-at"):
            self.refused(USAGE, ["--kernel", GUEST, f"--{option}=nonsense"], f"--{option}")
            self.refused(USAGE, ["--kernel", GUEST, f"--{option}="], f"--{option}")

    def test_words_that_are_no_options(self):
        self.refused(USAGE, [""], "empty word")
        self.refused(USAGE, [""], "''", run=False)
        self.refused(USAGE, ["--version", "2"], "2", run=False)
        for words in (["--kernel"], ["-k", GUEST], ["--"], ["---kernel", GUEST], ["--=x"], ["--kernel=", GUEST]):
            self.refused(USAGE, words)
        self.refused(USAGE, ["fly"], "fly", run=False)

    def test_a_name_with_a_line_break_stays_on_one_line(self):
        self.refused(USAGE, ["--kernel", self.path("a\nb\x1b[2J")], "a?b?[2J")
        self.refused(USAGE, ["--ker\nnel", "x"], "--ker?nel")
        self.refused(USAGE, ["a\nb"], "a?b", run=False)
        self.refused(USAGE, ["\x1b[2Jvm.ini"], "?[2Jvm.ini")


class MachineFiles(Case):
    def test_bad_lines_are_named(self):
        for text, word in ((b"kernel = x\n", "vm.ini:1"), (b"[machine]\nkernel\n", "vm.ini:2"), (b"[machine]\nkernle = x\n", "kernel"),
                           (b"[other]\n", "other"), (b"[machine]\nmemory = 1G\nmemory = 2G\n", "vm.ini:3"),
                           (b"[machine]\nkernel = \0\n", "vm.ini:2"), (b"\x7fELF" + bytes(100), "vm.ini:1"),
                           (b"[machine]\n" + b"append = " + b"x" * 70000 + b"\n", "vm.ini:2"), (b"", "nothing to boot"),
                           (b"x" * (2 << 20), "1 MiB"), (b"[machine]\nmemory = \xff\xfe\n", "vm.ini:2")):
            self.refused(USAGE, [self.file("vm.ini", text)], word)

    def test_two_or_none_or_a_directory(self):
        self.refused(USAGE, [self.path("none.ini")], "none.ini")
        self.refused(USAGE, [self.work.name], self.work.name)
        path = self.file("vm.ini", b"[machine]\n")
        self.refused(USAGE, [path, path], "vm.ini")


class BackEnds(Case):
    def test_a_serial_file_that_cannot_be_written(self):
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", "file:/no/such/directory/log"], "/no/such/directory/log")
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", f"file:{self.work.name}"], self.work.name)

    def test_a_socket_where_none_can_be(self):
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", "unix:/no/such/directory/sock"], "/no/such/directory/sock")
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", "unix:" + self.path("x" * 200)])
        path = self.file("plain", b"precious")
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", f"unix:{path}"], "plain")
        with open(path, "rb") as f:
            self.assertEqual(f.read(), b"precious")

    def test_a_trace_file_that_cannot_be_written(self):
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--trace", "cpu,file=/no/such/directory/trace"], "/no/such/directory/trace")

    def test_a_failed_start_leaves_what_is_in_files(self):
        log, trace = self.file("log", b"precious"), self.file("trace", b"dear")
        self.refused(USAGE, ["--kernel", self.path("none"), "--serial", f"file:{log}", "--trace", f"io,file={trace}"], "none")

    def test_a_fifo_that_nobody_reads(self):
        os.mkfifo(self.path("fifo"))
        for arguments in (["--serial", f"file:{self.path('fifo')}"], ["--debugcon", f"file:{self.path('fifo')}"],
                          ["--trace", f"io,file={self.path('fifo')}"]):
            self.refused(HOST_ERROR, ["--kernel", GUEST, *arguments], "fifo", "reads it")

    def test_a_working_directory_that_is_gone(self):
        gone = self.path("gone")
        os.mkdir(gone)
        here = os.getcwd()
        os.chdir(gone)
        try:
            os.rmdir(gone)
            self.refused(USAGE, ["--kernel", "relative"], "relative", cwd=".")
            self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", "unix:sock"], "sock", cwd=".")
        finally:
            os.chdir(here)

    def test_too_few_open_files(self):
        arguments = ["--kernel", GUEST, "--serial", f"unix:{self.path('sock')}"]
        for limit in range(4, 14): # each step of the start fails once
            self.refused(HOST_ERROR, arguments, "Too many open files", limits=[f"--nofile={limit}"])

    def test_files_made_before_the_failure_go(self):
        for arguments in (["--serial", f"file:{self.path('log')}", "--serial", f"unix:{self.path('sock')}"],
                          ["--serial", f"unix:{self.path('sock')}", "--debugcon", f"file:{self.path('debug')}"],
                          ["--trace", f"all,file={self.path('trace')}"]):
            self.refused(USAGE, ["--kernel", self.path("none"), *arguments], "none")
        self.refused(HOST_ERROR, ["--kernel", GUEST, "--serial", f"unix:{self.path('sock')}", "--serial", "file:/no/such/log"],
                     "/no/such/log")

    @unittest.skipIf(os.getuid(), "needs root, to be somebody else")
    def test_a_disk_without_permission(self):
        disk = self.file("disk", bytes(65536))
        os.chmod(disk, 0o400)
        os.chmod(self.work.name, 0o755)
        for path in (GNOMON, GUEST): # which somebody else may not reach
            self.file(os.path.basename(path), open(path, "rb").read())
        os.chmod(self.path(os.path.basename(GNOMON)), 0o755)
        result = subprocess.run([self.path(os.path.basename(GNOMON)), "run", "--kernel", self.path(os.path.basename(GUEST)), "--disk",
                                 disk], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, user=65534, group=65534)
        self.assertEqual(result.returncode, USAGE)
        self.assertRegex(result.stderr, r"^gnomon: disk .*Permission denied: try snapshot=on.*\n$")

    def test_disks(self):
        self.refused(USAGE, ["--kernel", GUEST, "--disk", self.path("none")], "none")
        self.refused(USAGE, ["--kernel", GUEST, "--disk", self.work.name], self.work.name)
        self.refused(USAGE, ["--kernel", GUEST, "--disk", self.file("empty", b"")], "empty")

    def second(self, arguments, status, *words):
        first = subprocess.Popen([GNOMON, "run", "--kernel", GUEST, "--append", "l", *arguments], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.work.name)
        try:
            socket_path = self.path("sock")
            deadline = time.monotonic() + LIMIT_S
            while True: # until it runs
                client = socket.socket(socket.AF_UNIX)
                try:
                    client.connect(socket_path)
                    break
                except OSError:
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.02)
                finally:
                    client.close()
            self.refused(status, ["--kernel", GUEST, *[a.replace("sock", self.other) for a in arguments]], *words)
            self.assertIsNone(first.poll(), "the first machine goes on")
        finally:
            first.send_signal(signal.SIGTERM)
            self.assertEqual(first.wait(LIMIT_S), 8)
            first.stdout.close()
            first.stderr.close()
        self.assertNotIn("sock", os.listdir(self.work.name))

    def test_a_second_machine_on_the_same_socket(self):
        self.other = "sock"
        self.second(["--serial", f"unix:{self.path('sock')}"], HOST_ERROR, "sock", "another machine")

    def test_a_second_machine_on_the_same_disk(self):
        self.other = "sock2"
        disk = self.file("disk", bytes(65536))
        self.second(["--serial", f"unix:{self.path('sock')}", "--disk", disk], USAGE, "disk")


class Guests(Case):
    """Guests that are noise crash themselves only."""

    def harmless(self, arguments, what):
        process = subprocess.run([GNOMON, "run", *arguments, "--timeout", "0.3", "--serial", "none", "--memory", "16M"],
                                 stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, cwd=self.work.name)
        text = process.stderr.decode(errors="replace")
        self.assertTrue(process.returncode in (0, 6, 10) or process.returncode & 1 and process.returncode > 0,
                        f"{what}: status {process.returncode}: {text}")
        self.assertNotIn("internal error", text, what)

    def test_noise_as_firmware(self):
        for seed in range(12):
            noise = bytearray(random.Random(seed).randbytes(65536))
            if seed & 1: # not all of it at the first instruction: a jump into the middle
                noise[0xFFF0:0xFFF3] = b"\xe9\x00\x40"
            self.harmless(["--bios", self.file("bios", bytes(noise))], f"firmware of seed {seed}")

    def test_noise_as_a_multiboot_kernel(self):
        for seed in range(12):
            header = struct.pack("<8I", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFFFFFF, 0x100000, 0x100000, 0, 0,
                                 0x100020)
            self.harmless(["--kernel", self.file("kernel", header + random.Random(seed).randbytes(65536))],
                          f"kernel of seed {seed}")


unittest.main(argv=sys.argv[:1] + sys.argv[3:])
