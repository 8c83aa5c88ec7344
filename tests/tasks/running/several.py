"""The program of processes that a launcher starts: runs the named stages one after another in this process."""

import sys

from tasks.__main__ import main

if __name__ == "__main__":
    for words in sys.argv[1:]:
        main(words.split())
