package osvm

// Limits are a machine's share of its host. Zero is no limit.
type Limits struct {
	CPUs                  float64 // processor time: cores, for example 0.5
	DiskMiB               int     // of its writable disk
	DiskBytesPerSecond    int64
	NetworkBytesPerSecond int64
}
