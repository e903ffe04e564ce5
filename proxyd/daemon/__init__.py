"""The process.

boot       the one place where the rooms are introduced to each other
run        its life, in order: open, listen, serve, drain, close
listen     addresses, and sockets that are handed over
tls        certificates, renewed while it runs
reload     a changed file takes effect
watch      notices that it changed
drain      the end that nobody should notice
heartbeat  the event loop's pulse, and the watchdog
systemd    how it talks with its supervisor
tracing    OpenTelemetry
warm       what the first exchanges would wait for, loaded beforehand
"""
