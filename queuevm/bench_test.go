package queuevm

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// pipeRate is the peer measured in the same run: items a second of n bytes
// through a kernel pipe between two goroutines, one write and one read each.
func pipeRate(b *testing.B, n, count int) float64 {
	r, w, err := os.Pipe()
	must(b, err)
	defer r.Close()
	go func() {
		item := make([]byte, n)
		for range count {
			if _, err := w.Write(item); err != nil {
				break
			}
		}
		_ = w.Close()
	}()
	item := make([]byte, n)
	begin, k := time.Now(), 0
	for ; ; k++ {
		if _, err := io.ReadFull(r, item); err != nil {
			break
		}
	}
	return float64(k) / time.Since(begin).Seconds()
}

func pipePing(b *testing.B, rounds int) float64 {
	toR, toW, err := os.Pipe()
	must(b, err)
	backR, backW, err := os.Pipe()
	must(b, err)
	go func() {
		item := make([]byte, 8)
		for {
			if _, err := io.ReadFull(toR, item); err != nil {
				_ = backW.Close()
				return
			}
			_, _ = backW.Write(item)
		}
	}()
	item := make([]byte, 8)
	begin := time.Now()
	for range rounds {
		_, _ = toW.Write(item)
		_, _ = io.ReadFull(backR, item)
	}
	took := time.Since(begin)
	_ = toW.Close()
	return float64(took.Nanoseconds()) / float64(rounds) / 2
}

// BenchmarkPaths prints each path's figures as ratios to a pipe's in the same run.
func BenchmarkPaths(b *testing.B) {
	for _, way := range paths() {
		for _, load := range []struct{ size, count int }{{8, 5_000_000}, {1 << 20, 3000}} {
			b.Run(fmt.Sprintf("%s/rate/%d", way.name, load.size), func(b *testing.B) {
				for range b.N {
					from, to := way.make(b)
					processes(b, from, 0)
					processes(b, to, 1)
					wire(b, 1, 4<<20, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "prev"})
					r := spawn(b, to, 1, built.c, "drain", "prev", strconv.Itoa(load.size))
					spawn(b, from, 0, built.c, "pump", "next", strconv.Itoa(load.count), strconv.Itoa(load.size)).result()
					fields := strings.Fields(r.result())
					if fields[0] != strconv.Itoa(load.count) {
						b.Fatalf("%s items of %d", fields[0], load.count)
					}
					seconds, err := strconv.ParseFloat(fields[1], 64)
					must(b, err)
					rate := float64(load.count) / seconds
					b.ReportMetric(rate*float64(load.size)/1e6, "MB/s")
					b.ReportMetric(rate/pipeRate(b, load.size, min(load.count, 300_000)), "x-pipe")
					b.ReportMetric(0, "ns/op")
				}
			})
		}
		b.Run(way.name+"/ping/8", func(b *testing.B) {
			for range b.N {
				from, to := way.make(b)
				processes(b, from, 0)
				processes(b, to, 1)
				wire(b, 1, 64<<10, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "prev"})
				wire(b, 2, 64<<10, to, Endpoint{Process: 1, Port: "prev"}, from, Endpoint{Process: 0, Port: "next"})
				spawn(b, to, 1, built.c, "pong", "prev", "prev")
				ns, err := strconv.ParseFloat(spawn(b, from, 0, built.c, "ping", "next", "next", "20000").result(), 64)
				must(b, err)
				b.ReportMetric(ns, "ns-one-way")
				b.ReportMetric(pipePing(b, 20000)/ns, "x-pipe")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
