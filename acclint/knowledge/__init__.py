"""What torch and the frameworks do, as plain data: no torch import, no libcst import.

Each table names its source (library, version, file). A question about something that is not in a table is answered
with None, which means "unknown", never "no".
"""
