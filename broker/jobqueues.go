package broker

import (
	"context"

	"mvm/wsdl"
)

// The broker's own queues, in which jobs wait: the operations of the controller
// that name no job come here. The broker is up when they do.

func (b *Service) listJobQueues(context.Context, *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	return nil, unserved("ListQueues without a job")
}

func (b *Service) peekJobQueue(context.Context, *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	return nil, unserved("PeekQueue without a job")
}

func (b *Service) drainJobQueue(context.Context, *wsdl.DrainQueue) (*wsdl.DrainQueueResponse, error) {
	return nil, unserved("DrainQueue without a job")
}

func (b *Service) changeJobQueue(context.Context, *wsdl.ChangeQueue) (*wsdl.ChangeQueueResponse, error) {
	return nil, unserved("ChangeQueue without a job")
}

func (b *Service) makeJobQueue(context.Context, *wsdl.MakeQueue) (*wsdl.MakeQueueResponse, error) {
	return nil, unserved("MakeQueue")
}

func (b *Service) removeJobQueue(context.Context, *wsdl.RemoveQueue) (*wsdl.RemoveQueueResponse, error) {
	return nil, unserved("RemoveQueue")
}

func (b *Service) moveJob(context.Context, *wsdl.MoveJob) (*wsdl.MoveJobResponse, error) {
	return nil, unserved("MoveJob")
}
