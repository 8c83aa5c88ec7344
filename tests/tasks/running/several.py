"""The program of processes that a launcher starts: runs the named stages one after another in this process."""

import runpy
import sys

if __name__ == "__main__":
    for words in sys.argv[1:]:
        sys.argv = words.split()
        runpy.run_module(f"tasks.{sys.argv[0]}", run_name="__main__")
