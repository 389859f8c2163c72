#!/bin/sh
# The queues of a running job in the hands of curl and the shell, and nothing
# else: look into them, put items in and take them out, change them.
#
#     queue.sh GRID JOB                          lists its queues
#     queue.sh GRID JOB peek QUEUE               what is taken next; nothing moves
#     queue.sh GRID JOB put QUEUE ITEM...        enqueues each ITEM
#     queue.sh GRID JOB get QUEUE [N]            dequeues N items, by default 1
#     queue.sh GRID JOB capacity QUEUE BYTES     gives it room for so much
#
# GRID is the address of any node, http://127.0.0.1:7480: whichever it is passes
# the call on to the node that has the queue. Items are text; each is a line of
# stdout. What went wrong is on stderr, and the exit status 1; 2 for a wrong call.
# Any POSIX shell will do.
set -eu
LC_ALL=C # bytes, not letters
export LC_ALL

usage='queue.sh GRID JOB [peek QUEUE | put QUEUE ITEM... | get QUEUE [N] | capacity QUEUE BYTES]'
grid=${1:?usage: $usage}
job=${2:?usage: $usage}
shift 2
grid=${grid%/}
letters=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/

wrong() {
	echo "usage: $usage" >&2
	exit 2
}

# call ELEMENT: POST it to the node's queue service; $answer is what came back. A
# fault ends the script with its sentence.
call() {
	answer=$(curl -sS --noproxy '*' --max-time 90 -H 'Content-Type: text/xml; charset=utf-8' --data-binary @- "$grid/services/queue" <<END
<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body>$1</soap:Body></soap:Envelope>
END
	)
	case $answer in
	*'<faultstring>'*)
		inside "$answer" faultstring
		plain "$value"
		echo "queue.sh: $value" >&2
		exit 1 ;;
	*'</soap:Envelope>'*) ;;
	*)
		echo "queue.sh: $grid answered: $answer" >&2
		exit 1 ;;
	esac
}

# inside XML NAME: $value is what the first element NAME holds.
inside() {
	case $1 in
	*"<$2>"*)
		value=${1#*"<$2>"}
		value=${value%%"</$2>"*} ;;
	*) value= ;;
	esac
}

# swap TEXT FROM TO: $value is the text with each FROM replaced.
swap() {
	rest=$1 value=
	while :; do
		case $rest in
		*"$2"*)
			value=$value${rest%%"$2"*}$3
			rest=${rest#*"$2"} ;;
		*)
			value=$value$rest
			return ;;
		esac
	done
}

# xml TEXT and plain XML: $value is the one as the other.
xml() {
	swap "$1" '&' '&amp;'; swap "$value" '<' '&lt;'
}
plain() {
	swap "$1" '&lt;' '<'; swap "$value" '&gt;' '>'; swap "$value" '&#34;' '"'; swap "$value" '&quot;' '"'
	swap "$value" '&#39;' "'"; swap "$value" '&apos;' "'"; swap "$value" '&amp;' '&'
}

# next: takes the first byte off $text; $byte is its number, 0 when there is none.
next() {
	byte=0
	if [ -n "$text" ]; then
		byte=$(printf %d "'$text") # of the first
		byte=$((byte & 255))
		text=${text#?}
	fi
}

# letter NUMBER: appends the letter that base64 has for it to $value.
letter() {
	after=$letters i=$1
	while [ "$i" -gt 0 ]; do
		after=${after#?}
		i=$((i - 1))
	done
	value=$value${after%"${after#?}"}
}

# encode TEXT: $value is its base64.
encode() {
	text=$1 value=
	while [ -n "$text" ]; do
		left=${#text}
		next; bits=$byte
		next; bits=$((bits << 8 | byte))
		next; bits=$((bits << 8 | byte))
		letter $((bits >> 18)); letter $((bits >> 12 & 63))
		if [ "$left" -gt 1 ]; then letter $((bits >> 6 & 63)); else value=$value=; fi
		if [ "$left" -gt 2 ]; then letter $((bits & 63)); else value=$value=; fi
	done
}

# decode BASE64: prints the bytes, and ends the line.
decode() {
	code=$1 bits=0 have=0
	while [ -n "$code" ]; do
		one=${code%"${code#?}"}
		code=${code#?}
		case $letters in
		*"$one"*) ;;
		*) continue ;; # = or the end of a line
		esac
		before=${letters%%"$one"*}
		bits=$((bits << 6 | ${#before})) have=$((have + 6))
		if [ "$have" -ge 8 ]; then
			have=$((have - 8))
			byte=$((bits >> have & 255)) bits=$((bits & ((1 << have) - 1)))
			printf "\\$((byte / 64))$((byte / 8 % 8))$((byte % 8))"
		fi
	done
	echo
}

# each XML NAME COMMAND: runs the command with what each element NAME holds.
each() {
	all=$1
	while :; do
		case $all in
		*"<$2>"*) ;;
		*) return 0 ;;
		esac
		inside "$all" "$2"
		all=${all#*"</$2>"}
		$3 "$value"
	done
}

show() { # a queue, of a list
	inside "$1" name; plain "$value"; name=$value
	inside "$1" type; type=$value
	inside "$1" items; items=$value
	inside "$1" capacity
	echo "$name: $type, ${items:-?} items, $value bytes at most"
}

seen() { # an item, of a peek
	inside "$1" data
	decode "$value"
}

xml "$job"
of="<job>$value</job>"
do=${1:-ls}
queue=${2:-}
if [ "$do" != ls ]; then
	[ -n "$queue" ] || wrong
	shift 2
	xml "$queue"
	of="$of<queue>$value</queue>"
fi

case $do in
ls)
	call "<ListQueues xmlns='urn:mvm:1'>$of</ListQueues>"
	each "${answer%%'<change>'*}" queue show ;;
peek)
	call "<PeekQueue xmlns='urn:mvm:1'>$of</PeekQueue>"
	each "$answer" item seen ;;
put)
	[ $# -gt 0 ] || wrong
	count=$# items=
	for item; do
		encode "$item"
		items="$items<item>$value</item>"
	done
	call "<Enqueue xmlns='urn:mvm:1'>$of$items<timeoutMillis>60000</timeoutMillis></Enqueue>"
	inside "$answer" accepted
	if [ "$value" != "$count" ]; then
		echo "queue.sh: the queue $queue had no room for a minute; $value of $count items went in" >&2
		exit 1
	fi ;;
get)
	left=${1:-1}
	while [ "$left" -gt 0 ]; do
		call "<Dequeue xmlns='urn:mvm:1'>$of<limit>$left</limit><timeoutMillis>60000</timeoutMillis></Dequeue>"
		got=$answer
		while :; do
			case $got in
			*'<item>'*) ;;
			*) break ;;
			esac
			inside "$got" item
			got=${got#*'</item>'}
			decode "$value"
			left=$((left - 1))
		done
		inside "$answer" end
		case $value,$answer in
		true,*)
			[ "$left" -eq 0 ] || echo "queue.sh: the queue $queue has ended" >&2
			break ;;
		*'<item'*) ;;
		*)
			echo "queue.sh: no item came for a minute" >&2
			exit 1 ;;
		esac
	done ;;
capacity)
	[ $# -eq 1 ] || wrong
	call "<ChangeQueue xmlns='urn:mvm:1'>$of<capacity>$1</capacity><waitMillis>60000</waitMillis></ChangeQueue>"
	inside "$answer" what; plain "$value"; what=$value
	inside "$answer" state; state=$value
	inside "$answer" reason; plain "$value"
	echo "$what: $state${value:+: $value}"
	[ "$state" = done ] || exit 1 ;;
*) wrong ;;
esac
