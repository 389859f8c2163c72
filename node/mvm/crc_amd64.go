//go:build amd64 && !amd64.v2

package mvm

// without is the part of the processor that an MVM process is started without.
// A library's package variable that nobody here uses is a table for CRC-32C, and
// to make that for SSE 4.2 takes 0.2 ms of each start. Nothing else in Go asks for
// SSE 4.2.
const without = "GODEBUG=cpu.sse42=off"
