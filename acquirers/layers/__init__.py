"""Image layers: whether what lies on a disk is what the image's publisher made.

tarsplit    what a runtime kept of the tar that a layer was: everything but the content of its files
headers     what one member of that tar says of its file
crc64       the checksum that it keeps of each file's content
disk        a layer's directory, asked by name
proof       puts both together: the tar, byte for byte, against the layer's DiffID; and what no digest of a tar shows
"""
