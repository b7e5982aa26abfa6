"""Text from elsewhere, made fit to be passed on."""

LONGEST_LINE = 600  # characters of a message


def in_a_line(message: str) -> str:
    """A message that may quote a file or a server: no line ends, nothing a terminal obeys, not too long."""
    printable = "".join(character if character.isprintable() else " " for character in message)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a character: no page and no message of a kernel can hold one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
