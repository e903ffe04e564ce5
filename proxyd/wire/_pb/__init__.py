"""Generated from protos/proxyd/v1/chat.proto by .ci/gen-protos; do not edit."""
