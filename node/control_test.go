package node

import (
	"context"
	"testing"

	"mvm/wsdl"
)

// No queue's name is not the name of all of them.
func TestCallsAboutItemsNameAQueue(t *testing.T) {
	_, err := (&queue{}).PeekQueueContext(context.Background(), &wsdl.PeekQueue{Job: "j-1"})
	if wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
		t.Fatalf("peek at no queue: %v", err)
	}
}
