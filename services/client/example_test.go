package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"mvm/services/client"
	"mvm/wsdl"
)

// Submit a profile to a grid, wait for the job, and print what its first
// process wrote.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	grid, err := client.Dial(ctx, client.GridFromEnvironment())
	if err != nil {
		log.Fatal(err)
	}
	profile, err := client.Load("sunspots.xml")
	if err != nil {
		client.PrintError(os.Stderr, "example", err) // each problem with its line
		os.Exit(client.ExitCode(err))
	}
	id, err := grid.Submit(ctx, client.Request{Document: profile, Arguments: map[string]string{"processes": "16"}})
	if err != nil {
		log.Fatal(err)
	}
	job, err := grid.Wait(ctx, id, func(now *wsdl.JobStatus) { fmt.Println(*now.State) })
	if err != nil {
		log.Fatal(err)
	}
	if _, err := grid.Output(ctx, job.Id, 0, client.Stdout, 0, false, os.Stdout); err != nil {
		log.Fatal(err)
	}
	for _, result := range client.Results(job) {
		if err := grid.Save(ctx, job.Id, result, "results"); err != nil {
			log.Fatal(err)
		}
	}
}
