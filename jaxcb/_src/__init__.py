"""Everything private: a folder is a concept, and imports only the folders before it (docs/design.md)."""
