"""Whether this machine, its devices and its compilers can be trusted. See README.md.

Reads no config and no run; writes nothing but its own verdict in the user's cache folder.
"""
