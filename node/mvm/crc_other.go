//go:build !amd64 || amd64.v2

package mvm

const without = "" // there is nothing, or it cannot be done without
