"""What the host lets tests compare with: shared by those that run gnomon."""
import ctypes
import os
import re
import sys

# What gnomon says where it had no processes for user code
NO_WORKERS = re.compile(r"gnomon: this host gives user code no processes of its own [^\n]*\n")


def has_workers():
    """Whether user code can have processes of its own here. Asked of the kernel, not of gnomon: where gnomon fails to make
    them, tests must fail. AT_HWCAP2 is 26; bit 1 of it: the kernel keeps FS and GS bases that programs load."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    return bool(getauxval(ctypes.c_ulong(26)) & 2)


def said(text, workers):
    """What gnomon wrote, as where there are `workers`: without its line about them, which must be there once at most."""
    if workers:
        return text
    text, lines = NO_WORKERS.subn("", text.replace("\r", ""))
    assert lines <= 1, text
    return text


def has_32_bit_code():
    """Whether the host's kernel runs 32-bit code: getpid() by INT 80h tells."""
    pid = os.fork()
    if not pid:
        import mmap
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 80h; ret
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
        os._exit(0 if call() == os.getpid() else 1)
    return os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":  # status 1 where user code can have no processes of its own
    sys.exit(not has_workers())
