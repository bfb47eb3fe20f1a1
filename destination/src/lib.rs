//! Tells proxies where services are and how to reach them.
