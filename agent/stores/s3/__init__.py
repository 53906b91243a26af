"""An S3 bucket as store and source.

`place` says where; `client` makes boto3 clients; `control` is every control call; `authority` by whose right; parts go
over connections of our own.
"""
