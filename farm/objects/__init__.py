"""Object storage: the names of all objects, the S3 client, and the checks that an input image passes first."""
