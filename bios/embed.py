#!/usr/bin/env python3
# Prints a file as a C array: embed.py FILE NAME
import sys

data = open(sys.argv[1], "rb").read()
print(f"static const unsigned char {sys.argv[2]}[{len(data)}] = {{")
for at in range(0, len(data), 16):
    print("    " + " ".join(f"0x{byte:02x}," for byte in data[at:at + 16]))
print("};")
