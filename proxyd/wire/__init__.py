"""Bytes and their meaning. Pure: no clock, no I/O, no async.

Of a request:
headers        which headers pass, both ways; the credential
coding         compressed bodies, decoded within bounds
text           UTF-8, and not too deep
body           from bytes to an Ask, and from an Ask to what the upstream gets
wishes         what is said to proxyd alone: delivery, handle, conversation
delivery       how the answer is to be delivered
negotiate      which form it comes in, and which one the answer leaves in
canonical      the one form of requests that mean the same
prompt         what it puts into the model, taken apart for counting
turn           what is stored of it and of its answer, in a conversation

Of an answer:
sse            events and lines, cut out of a byte stream
meter          what passes, whole events at a time, and is read meanwhile
inflate        the copy of a compressed answer that is only read
dialects       how each upstream writes answers
chunk          the ordinary chunk, read at the least cost
answer         what one answer has said so far
usage          token counts and errors, in all dialects
template       events of a stream that differ by their text alone, known by their bytes
tokens         counting offline, where no upstream reports
faults         errors of upstreams made ours, and ours as clients read them
tape           what was sent, kept to be sent again
compress       gzip and brotli for answers

In protobuf (the schema is in protos/, the generated code in _pb/):
proto          a chat request, read as the JSON request that it stands for
proto_ask      the other way
proto_message  one message, shared by requests and answers
proto_text     JSON text and numbers, spliced
proto_scan     a look at the bytes before they are decoded
proto_reply    whole answers
proto_whole    the same where a stream was asked for
proto_stream   a stream of events as frames, held as long as is allowed
proto_chunk    one frame in the making
proto_exact    frames from which the events can be rebuilt to the letter
proto_rebuild  frames back into events
proto_halves   characters that came cut in half
proto_frames   frames behind their lengths
proto_embed    embeddings and models
proto_error    errors
connect        Connect and gRPC-Web around all of it
"""
