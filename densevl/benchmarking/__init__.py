"""How long a method takes on this machine, against the least work it could be: `densevl bench`."""
