"""How the command line shows things: bars, pictures in the terminal, plans, sizes and times."""
