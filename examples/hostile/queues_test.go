package hostile

import "strings"

// queuesGroup is about the controller of queues: those in which jobs wait, and those
// of jobs that there are not.
func queuesGroup() group {
	const escape = "&#x9b;31m\u202e"
	q := func(name, head, says, operation, content string) entry {
		return entry{name: name, head: head, says: says, send: call("queue", `<`+operation+` xmlns="urn:mvm:1">`+content+`</`+operation+`>`)}
	}
	waiting := func(content string) string { return "<queue>default</queue>" + content }
	of := func(content string) string { return "<job>j</job><queue>q</queue>" + content }
	steps := `<encoders>` + strings.Repeat(`<encoder codec="zstd"/>`, 5000) + `</encoders>`
	return group{"Queues", "Calls to the controller of queues, for those in which jobs wait and for a job that there is not.", []entry{
		q("a list of a job that there is not", "500 notFound: ", "", "ListQueues", "<job>../../etc/passwd</job>"),
		q("a list that watches for a month", "500 notFound: ", "", "ListQueues", "<job>j</job><sampleMillis>2147483647</sampleMillis>"),
		q("a list of a queue of jobs with an escape sequence for a name", "500 notFound: ", "", "ListQueues", "<queue>"+escape+"</queue>"),
		q("a look at 2^31 - 1 jobs", "200 PeekQueueResponse", "", "PeekQueue", waiting("<limit>2147483647</limit><bytes>2147483647</bytes>")),
		q("a look at -1 jobs", "500 invalidRequest: ", "", "PeekQueue", waiting("<limit>-1</limit>")),
		q("a look at more than any number", unfit, "PeekQueue/limit", "PeekQueue", waiting("<limit>99999999999999999999</limit>")),
		q("a drain of a queue of jobs that there is not", "500 notFound: ", "", "DrainQueue", "<queue>$(reboot)</queue>"),
		q("a queue of jobs named $(reboot)", "500 invalidRequest: ", "", "MakeQueue", "<name>$(reboot)</name>"),
		q("a queue of jobs named with an escape sequence", "500 invalidRequest: ", "", "MakeQueue", "<name>"+escape+"</name>"),
		q("a queue of jobs with a name of 200,000 letters", "500 invalidRequest: ", "", "MakeQueue", "<name>"+strings.Repeat("q", 200_000)+"</name>"),
		q("a queue of jobs that is there", "500 conflict: ", "", "MakeQueue", "<name>default</name>"),
		q("a queue of jobs that is a stack", "500 ", "", "MakeQueue", "<name>a</name><type>lifo</type>"),
		q("a queue of jobs for fewer than none", "500 ", "", "MakeQueue", "<name>a</name><capacity>-1</capacity>"),
		q("a queue of jobs that drops", "500 ", "", "MakeQueue", "<name>a</name><full>dropOldest</full>"),
		q("a queue of jobs with a weight of 2^31 - 1", "500 ", "", "MakeQueue", "<name>a</name><weight>2147483647</weight>"),
		q("the removal of the queue of jobs that always is", "500 ", "", "RemoveQueue", "<name>default</name>"),
		q("the removal of a queue of jobs into itself", "500 ", "", "RemoveQueue", "<name>default</name><into>default</into>"),
		q("a codec on a queue of jobs", "500 ", "", "ChangeQueue", waiting(`<encoders><encoder codec="json"/></encoders>`)),
		q("a link on a queue of jobs", "500 ", "", "ChangeQueue", waiting(`<link latency="5"/>`)),
		q("a move of a job that there is not", "500 notFound: ", "", "MoveJob", "<job>$(reboot)</job><priority>-2147483648</priority>"),
		q("a move of a job to no place", unfit, "", "MoveJob", "<job>j</job><place>middle</place>"),
		q("5,000 codecs for a queue of a job that there is not", "500 ", "", "ChangeQueue", of(steps)),
		q("a capacity beyond 2^63", unfit, "ChangeQueue/capacity", "ChangeQueue", of("<capacity>9223372036854775808</capacity>")),
		q("a type of queue that nobody knows", unfit, "heap", "ChangeQueue", of("<type>heap</type>")),
		q("a link of infinite latency", "500 ", "", "ChangeQueue", of(`<link latency="INF" loss="NaN"/>`)),
		q("an edge that is none", unfit, "", "AddEdge", "<job>j</job><edge/>"),
		q("an edge of a job that there is not", "500 notFound: ", "", "AddEdge", `<job>j</job><edge from="a:b" to="c:d"/>`),
		q("an edge led elsewhere, of a job that there is not", "500 notFound: ", "", "RewireEdge", "<job>j</job><edge>channel:99999999999999999999</edge><to>"+escape+"</to>"),
		q("the change with the number -1", "500 ", "", "GetChange", "<job>j</job><number>-1</number><waitMillis>2147483647</waitMillis>"),
		q("an item for no job", "500 invalidRequest: ", "", "Enqueue", "<job/><queue>q</queue>"),
		q("an item for a job that there is not", "500 notFound: ", "", "Enqueue", of("<item>QQ==</item><timeoutMillis>2147483647</timeoutMillis>")),
		q("an item with a priority of -1", "500 invalidRequest: ", "", "Enqueue", of("<item>QQ==</item><priority>-1</priority>")),
		q("an item that is no base64", unfit, "Enqueue/item", "Enqueue", of("<item>!</item>")),
		q("-1 items from a job that there is not, for ever", "500 notFound: ", "", "Dequeue", of("<limit>-1</limit><timeoutMillis>2147483647</timeoutMillis>")),
		q("a socket to a queue of a job that there is not", "500 notFound: ", "", "OpenSocket", of("<ttlMillis>-2147483648</ttlMillis>")),
	}}
}
