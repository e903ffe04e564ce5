"""The provider side: connections that push.

kinds       what differs between kinds of upstream, in one table
http        an upstream reached over HTTP
pool        its connections
connection  one of them: bytes from the socket into a sink, in one callback
echo        the embedded upstream
document    small documents that proxyd itself needs: an issuer's keys
"""
