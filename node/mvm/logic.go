package mvm

import (
	"mvm/queuevm"
	"mvm/queuevm/codec"
)

// converter makes what converts a queue's items of its steps, nil of none: when
// the queue is made, and when it is changed.
func (p *process) converter(q Queue) (queuevm.Converter, error) {
	if len(q.Steps) == 0 {
		return nil, nil
	}
	return codec.New(q.Steps, codec.Limits{Item: min(max(q.Capacity, 1), queuevm.ConvertedMax)}, nil)
}
