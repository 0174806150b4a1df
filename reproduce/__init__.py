"""The paper's tables and figures beside the measurements that are recorded here."""
