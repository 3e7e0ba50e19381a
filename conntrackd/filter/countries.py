"""Codes of countries as GeoIP databases have them, and what is often written instead."""

from typing import Final

# ISO 3166-1 alpha-2 by its first letter, and XK, which is Kosovo to everybody who makes such databases.
SECOND_LETTERS: Final = {
    "A": "DEFGILMOQRSTUWXZ", "B": "ABDEFGHIJLMNOQRSTVWYZ", "C": "ACDFGHIKLMNORUVWXYZ", "D": "EJKMOZ",
    "E": "CEGHRST", "F": "IJKMOR", "G": "ABDEFGHILMNPQRSTUWY", "H": "KMNRTU", "I": "DELMNOQRST",
    "J": "EMOP", "K": "EGHIMNPRWYZ", "L": "ABCIKRSTUVY", "M": "ACDEFGHKLMNOPQRSTUVWXYZ",
    "N": "ACEFGILOPRUZ", "O": "M", "P": "AEFGHKLMNRSTWY", "Q": "A", "R": "EOSUW",
    "S": "ABCDEGHIJKLMNORSTVXYZ", "T": "CDFGHJKLMNORTVWZ", "U": "AGMSYZ", "V": "ACEGINU", "W": "FS",
    "X": "K", "Y": "ET", "Z": "AMW",
}  # fmt: skip
CODES: Final = frozenset(first + second for first, letters in SECOND_LETTERS.items() for second in letters)

# Languages, domains, car plates, and states that are gone.
MEANT: Final = {
    "AN": "CW", "BU": "MM", "CS": "CZ", "DD": "DE", "EL": "GR", "EN": "GB", "FX": "FR", "JA": "JP",
    "KO": "KR", "SP": "ES", "SU": "RU", "SW": "SE", "TP": "TL", "UK": "GB", "YU": "RS", "ZR": "CD",
}  # fmt: skip
