// Command soap is MVM's SOAP server alone, as package versus measures it: `make
// bench BENCH='-case soap'` compares it with gSOAP's. It serves on a port of its
// own choice, which it prints, until it is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	profile := flag.String("profile", "", "write a CPU profile to this `FILE`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "soap:", err)
		os.Exit(1)
	}
}
