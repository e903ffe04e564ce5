"""The provider side: connections that push."""
