"""One study, from its files to its result, in this process."""
