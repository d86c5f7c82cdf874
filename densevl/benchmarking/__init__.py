"""Time of a method on this machine, compared with the least work it needs: `densevl bench`."""
