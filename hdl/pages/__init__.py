"""Page manager: free list, references, tenants, block tables, copies."""
