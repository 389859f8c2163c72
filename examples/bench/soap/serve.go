package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime/pprof"

	"github.com/sirupsen/logrus"

	"mvm/services/soap"
	"mvm/wsdl"
)

// information answers a heartbeat with the attempts that it named, so that
// request and answer are of one size and the handler costs nothing.
type information struct{ wsdl.InformationContext }

func (information) HeartbeatContext(_ context.Context, r *wsdl.Heartbeat) (*wsdl.HeartbeatResponse, error) {
	return &wsdl.HeartbeatResponse{Attempt: r.Attempt, LeaseMillis: 10_000, HeartbeatMillis: 3000}, nil
}

// serve is the server that is measured: the transport as `mvm node` configures
// it, with a line in the log for each call. It prints its address, and ends
// with ctx. profile names a file for a CPU profile, or is "".
func serve(ctx context.Context, profile string) error {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetFormatter(soap.NewLogFormatter())
	server, err := soap.NewServer(soap.Config{Contracts: []wsdl.Contract{wsdl.InformationContract(information{})}, Log: log})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Printf("http://%s\n", listener.Addr())
	return server.Serve(ctx, listener)
}
