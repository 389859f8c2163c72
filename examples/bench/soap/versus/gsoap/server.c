/* A gSOAP server of the information service, as gSOAP's users write them:
   generated from the published WSDL in strict mode, a thread for each
   connection, kept alive. Like MVM's it logs one line a call, in one write. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include "soapH.h"
#include "InformationBinding.nsmap"

static double now(void)
{
    struct timeval t;
    gettimeofday(&t, NULL);
    return t.tv_sec + t.tv_usec / 1e6;
}

/* When the request that this thread serves began. */
static __thread double begun;

static void line(struct soap *soap, const char *operation)
{
    char text[512], when[64];
    struct timeval t;
    struct tm tm;
    gettimeofday(&t, NULL);
    gmtime_r(&t.tv_sec, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    int n = snprintf(text, sizeof text,
        "{\"code\":\"ok\",\"in\":%lu,\"level\":\"info\",\"micros\":%.0f,\"msg\":\"request\",\"operation\":\"%s\","
        "\"out\":%lu,\"remote\":\"%s:%d\",\"request\":\"%016lx\",\"service\":\"information\",\"status\":200,\"time\":\"%s.%06ldZ\"}\n",
        (unsigned long)soap->length, (now() - begun) * 1e6, operation, (unsigned long)soap->count, soap->host, soap->port,
        random(), when, (long)t.tv_usec);
    if (write(STDERR_FILENO, text, n) < 0)
        exit(1);
}

int __ns1__Heartbeat(struct soap *soap, struct _ns1__Heartbeat *request, struct _ns1__HeartbeatResponse *response)
{
    response->__sizeattempt = request->__sizeattempt;
    response->attempt = request->attempt;
    response->leaseMillis = 10000;
    response->heartbeatMillis = 3000;
    return SOAP_OK;
}

int __ns1__Heartbeat_(struct soap *soap, struct _ns1__Heartbeat *request, struct _ns1__HeartbeatResponse *response)
{
    return __ns1__Heartbeat(soap, request, response);
}

int __ns1__Register(struct soap *soap, struct _ns1__Register *a, struct _ns1__RegisterResponse *b) { return SOAP_NO_METHOD; }
int __ns1__Query(struct soap *soap, struct _ns1__Query *a, struct _ns1__QueryResponse *b) { return SOAP_NO_METHOD; }
int __ns1__Register_(struct soap *soap, struct _ns1__Register *a, struct _ns1__RegisterResponse *b) { return SOAP_NO_METHOD; }
int __ns1__Query_(struct soap *soap, struct _ns1__Query *a, struct _ns1__QueryResponse *b) { return SOAP_NO_METHOD; }

/* The clock starts once the request's head is there, as MVM's does. */
static int (*parse)(struct soap *);

static int parsed(struct soap *soap)
{
    int r = parse(soap);
    begun = now();
    return r;
}

/* As soap_serve, with a line in the log after each call. */
static int serve(struct soap *soap)
{
    soap->keep_alive = soap->max_keep_alive + 1;
    do {
        if (soap->keep_alive > 0 && soap->max_keep_alive > 0)
            soap->keep_alive--;
        if (soap_begin_serve(soap)) {
            if (soap->error >= SOAP_STOP)
                continue;
            return soap->error;
        }
        if (soap_serve_request(soap)) {
            soap_send_fault(soap);
            fprintf(stderr, "fault %d\n", soap->error);
        } else {
            line(soap, "Heartbeat");
        }
        soap_destroy(soap);
        soap_end(soap);
    } while (soap->keep_alive);
    return SOAP_OK;
}

static void *connection(void *of)
{
    struct soap *soap = of;
    pthread_detach(pthread_self());
    serve(soap);
    soap_destroy(soap);
    soap_end(soap);
    soap_free(soap);
    return NULL;
}

int main(int argc, char **argv)
{
    struct soap *soap = soap_new1(SOAP_XML_STRICT | SOAP_IO_KEEPALIVE);
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    soap->max_keep_alive = 1 << 30;
    soap->recv_timeout = soap->send_timeout = 60;
    soap->accept_timeout = 0;
    soap->socket_flags = MSG_NOSIGNAL;
    soap->bind_flags = SO_REUSEADDR;
    parse = soap->fparse;
    soap->fparse = parsed;
    int s = soap_bind(soap, "127.0.0.1", argc > 1 ? atoi(argv[1]) : 0, 1024);
    if (!soap_valid_socket(s) || getsockname(s, (struct sockaddr *)&address, &size)) {
        soap_print_fault(soap, stderr);
        return 1;
    }
    printf("http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        pthread_t thread;
        if (!soap_valid_socket(soap_accept(soap))) {
            soap_print_fault(soap, stderr);
            continue;
        }
        struct soap *copy = soap_copy(soap);
        if (!copy || pthread_create(&thread, NULL, connection, copy))
            return 1;
    }
}
